//! What an expression says about itself: which metrics it selects, which labels its result has, which numbers it
//! compares with.

use std::collections::BTreeSet;

use promql_parser::{
    label::MatchOp,
    parser::{
        self, BinaryExpr, Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector,
        token::{T_ADD, T_BOTTOMK, T_DIV, T_LAND, T_LUNLESS, T_MUL, T_SUB, T_TOPK},
    },
};

use crate::metrics::Metrics;

pub(crate) fn parse(text: &str) -> Expr {
    parser::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Calls `see` for `expression` and everything in it; the second argument says which functions it stands in.
pub(crate) fn walk<'a>(expression: &'a Expr, see: &mut impl FnMut(&'a Expr, &[&str])) {
    fn step<'a>(
        expression: &'a Expr,
        inside: &mut Vec<&'static str>,
        see: &mut impl FnMut(&'a Expr, &[&str]),
    ) {
        see(expression, inside);
        match expression {
            Expr::Aggregate(aggregate) => step(&aggregate.expr, inside, see),
            Expr::Unary(unary) => step(&unary.expr, inside, see),
            Expr::Binary(binary) => {
                step(&binary.lhs, inside, see);
                step(&binary.rhs, inside, see);
            }
            Expr::Paren(paren) => step(&paren.expr, inside, see),
            Expr::Subquery(subquery) => step(&subquery.expr, inside, see),
            Expr::Call(call) => {
                inside.push(call.func.name);
                for argument in &call.args.args {
                    step(argument, inside, see);
                }
                inside.pop();
            }
            _ => {}
        }
    }
    step(expression, &mut Vec::new(), see);
}

/// Every selector, with the functions it stands in.
pub(crate) fn selectors(expression: &Expr) -> Vec<(&VectorSelector, Vec<String>)> {
    let mut found = Vec::new();
    walk(expression, &mut |part, inside| {
        let selector = match part {
            Expr::VectorSelector(selector) => selector,
            Expr::MatrixSelector(matrix) => &matrix.vs,
            _ => return,
        };
        found.push((selector, inside.iter().map(|name| (*name).to_owned()).collect()));
    });
    found
}

/// The name of the metric that is selected.
pub(crate) fn name(selector: &VectorSelector) -> &str {
    selector.name.as_deref().unwrap_or_else(|| panic!("a selector without a name: {selector}"))
}

/// What is wrong with the names in `expression`: metrics that nothing exports, labels that a metric does not have, and
/// values that a label never takes.
pub(crate) fn misspelt(expression: &Expr, metrics: &Metrics) -> Vec<String> {
    let mut wrong = Vec::new();
    for (selector, _) in selectors(expression) {
        let name = name(selector);
        if !metrics.has(name) {
            wrong.push(format!("nothing exports {name}"));
            continue;
        }
        for matcher in &selector.matchers.matchers {
            if !metrics.labels(name).contains(&matcher.name) {
                wrong.push(format!("{name} has no label {}", matcher.name));
            } else if let Some(values) = metrics.closed(name, &matcher.name)
                && matches!(matcher.op, MatchOp::Equal | MatchOp::Re(_))
                && !values.iter().any(|value| matcher.is_match(value))
            {
                wrong.push(format!("{name} is never {matcher}"));
            }
        }
    }
    wrong
}

/// The labels that the result of `expression` is sure to have; `None` for a number.
pub(crate) fn labels(expression: &Expr, metrics: &Metrics) -> Option<BTreeSet<String>> {
    match expression {
        Expr::VectorSelector(selector) => Some(metrics.labels(name(selector)).clone()),
        Expr::MatrixSelector(matrix) => Some(metrics.labels(name(&matrix.vs)).clone()),
        Expr::Paren(paren) => labels(&paren.expr, metrics),
        Expr::Unary(unary) => labels(&unary.expr, metrics),
        Expr::Subquery(subquery) => labels(&subquery.expr, metrics),
        Expr::Aggregate(aggregate) => {
            let all = labels(&aggregate.expr, metrics).unwrap_or_default();
            // These two choose among series and leave them as they are.
            if matches!(aggregate.op.id(), T_TOPK | T_BOTTOMK) {
                return Some(all);
            }
            Some(match &aggregate.modifier {
                None => BTreeSet::new(),
                Some(modifier) => kept(&all, modifier),
            })
        }
        Expr::Binary(binary) => labels_of_binary(binary, metrics),
        Expr::Call(call) => labels_of_call(call, metrics),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => None,
    }
}

fn kept(all: &BTreeSet<String>, modifier: &LabelModifier) -> BTreeSet<String> {
    let named: BTreeSet<String> = modifier.labels().labels.iter().cloned().collect();
    for label in &named {
        assert!(all.contains(label), "there is no label {label} to group by");
    }
    if modifier.is_include() { named } else { all.difference(&named).cloned().collect() }
}

fn labels_of_binary(binary: &BinaryExpr, metrics: &Metrics) -> Option<BTreeSet<String>> {
    let (left, right) = (labels(&binary.lhs, metrics), labels(&binary.rhs, metrics));
    let (Some(left), Some(right)) = (left.clone(), right.clone()) else { return left.or(right) };
    if let Some(matching) = binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref()) {
        kept(&left, matching);
        kept(&right, matching);
    }
    if matches!(binary.op.id(), T_LAND | T_LUNLESS) {
        return Some(left);
    }
    if binary.op.is_set_operator() {
        return Some(left.intersection(&right).cloned().collect());
    }
    let Some(modifier) = &binary.modifier else { return Some(left) };
    Some(match (&modifier.card, &modifier.matching) {
        (VectorMatchCardinality::ManyToOne(more), _) => left.into_iter().chain(more.labels.clone()).collect(),
        (VectorMatchCardinality::OneToMany(more), _) => {
            right.into_iter().chain(more.labels.clone()).collect()
        }
        (_, Some(matching)) => kept(&left, matching),
        (_, None) => left,
    })
}

fn labels_of_call(call: &Call, metrics: &Metrics) -> Option<BTreeSet<String>> {
    match call.func.name {
        "vector" => Some(BTreeSet::new()),
        "time" => None,
        "label_replace" | "label_join" => {
            let mut all = labels(&call.args.args[0], metrics)?;
            if let Expr::StringLiteral(target) = &*call.args.args[1] {
                all.insert(target.val.clone());
            }
            Some(all)
        }
        _ => call.args.args.iter().find_map(|argument| labels(argument, metrics)),
    }
}

/// The numbers that metrics are held against: in comparisons, and as arguments of functions (`predict_linear`).
pub(crate) fn numbers(expression: &Expr) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    let mut add = |side: &Expr, number: f64| {
        found.extend(selectors(side).into_iter().map(|(selector, _)| (name(selector).to_owned(), number)));
    };
    walk(expression, &mut |part, _| match part {
        Expr::Binary(binary) if binary.op.is_comparison_operator() => {
            if let Some(number) = constant(&binary.rhs) {
                add(&binary.lhs, number);
            }
        }
        Expr::Call(call) => {
            for number in call.args.args.iter().filter_map(|argument| constant(argument)) {
                add(part, number);
            }
        }
        _ => {}
    });
    found
}

/// The value of an expression made of numbers alone.
fn constant(expression: &Expr) -> Option<f64> {
    match expression {
        Expr::NumberLiteral(number) => Some(number.val),
        Expr::Paren(paren) => constant(&paren.expr),
        Expr::Unary(unary) => constant(&unary.expr).map(|number| -number),
        Expr::Binary(binary) => {
            let (left, right) = (constant(&binary.lhs)?, constant(&binary.rhs)?);
            match binary.op.id() {
                T_ADD => Some(left + right),
                T_SUB => Some(left - right),
                T_MUL => Some(left * right),
                T_DIV => Some(left / right),
                _ => None,
            }
        }
        _ => None,
    }
}

#[test]
fn labels_are_followed_through_an_expression() {
    let metrics = Metrics::golden();
    let of =
        |text: &str| labels(&parse(text), &metrics).map(|all| all.into_iter().collect::<Vec<_>>().join(" "));
    assert_eq!(of("redis_up == 0").unwrap(), "instance job redis");
    assert_eq!(of("sum by (instance) (redis_up)").unwrap(), "instance");
    assert_eq!(of("max(redis_up)").unwrap(), "");
    assert_eq!(of("redis_up or systemd_up").unwrap(), "instance job");
    assert_eq!(of("redis_up and on (instance) systemd_up").unwrap(), "instance job redis");
    assert_eq!(of("redis_up * on (instance) systemd_up").unwrap(), "instance");
    assert_eq!(
        of("redis_up * on (redis) group_left (reason) redis_probe_failure").unwrap(),
        "instance job reason redis"
    );
    assert_eq!(of("time() - redis_up").unwrap(), "instance job redis");
    assert_eq!(of("topk by (instance) (1, redis_up)").unwrap(), "instance job redis");
    assert_eq!(of("label_join(redis_up, \"what\", \"|\", \"redis\")").unwrap(), "instance job redis what");
    assert_eq!(of("1 + 1"), None);
}

#[test]
fn numbers_are_found() {
    let found = numbers(&parse("predict_linear(redis_up[6h], 24 * 3600) < 0 and 1 - systemd_up > 0.85"));
    assert_eq!(
        found,
        [("redis_up".to_owned(), 0.0), ("redis_up".to_owned(), 86400.0), ("systemd_up".to_owned(), 0.85)]
    );
}

/// The test of the tests: what nobody exports is noticed wherever it stands.
#[test]
fn a_misspelt_name_is_noticed() {
    let metrics = Metrics::golden();
    let wrong = |text: &str| misspelt(&parse(text), &metrics).join("; ");
    assert_eq!(wrong("sum(redis_up{redis=\"a\"}) or 0 * max(systemd_up)"), "");
    assert_eq!(wrong("sum(redis_upp)"), "nothing exports redis_upp");
    assert_eq!(wrong("redis_up or 0 * max(rate(systemd_service_restarts_total[1m]))"), {
        "nothing exports systemd_service_restarts_total"
    });
    assert_eq!(wrong("redis_up{name=\"a\"}"), "redis_up has no label name");
    assert_eq!(
        wrong("systemd_unit_state{state=\"faild\"} == 1"),
        "systemd_unit_state is never state=\"faild\""
    );
    assert_eq!(wrong("docker_container_health{status=~\"healthy|sick\"}"), "");
    assert_eq!(
        wrong("evenkeel_remediator_remediations_total{outcome=\"success\"}"),
        "evenkeel_remediator_remediations_total is never outcome=\"success\""
    );
}
