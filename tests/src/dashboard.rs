//! A dashboard's questions, asked of a Prometheus as Grafana asks them: variables first, then every panel and every
//! annotation. Not how it looks.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde_json::Value;

use crate::http;

/// A span of time, in seconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its begin.
    pub from: f64,
    /// Its end, at which what is shown as now is asked for.
    pub to: f64,
    /// The distance between the points of a graph; as far apart as the scrapes, so that nothing falls between them.
    pub step: f64,
}

/// What one of a dashboard's questions came to.
#[derive(Debug)]
pub struct Asked {
    /// Where it stands: `panel TITLE REFID`, `annotation NAME` or `variable NAME`.
    pub place: String,
    /// As Prometheus was asked.
    pub query: String,
    /// How many series (values, for a variable) came back that have a number in them, or why none did.
    pub found: Result<usize, String>,
}

impl Asked {
    /// Whether there is nothing to be seen of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !matches!(self.found, Ok(count) if count > 0)
    }
}

/// One dashboard.
#[derive(Debug)]
pub struct Dashboard(Value);

impl Dashboard {
    /// Of its JSON.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// The same of its text.
    ///
    /// # Errors
    ///
    /// When it is no JSON.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(serde_json::from_str(text)?))
    }

    /// Asks everything that it asks, about all hosts.
    ///
    /// # Errors
    ///
    /// When it is not made as ours are, or Prometheus does not answer at all.
    pub async fn ask(&self, prometheus: &str, span: Span) -> Result<Vec<Asked>> {
        let mut asked = Vec::new();
        let mut values = vec![("__range".to_owned(), format!("{:.0}s", span.to - span.from))];
        // As Grafana computes it for points as far apart as the scrapes.
        values.push(("__rate_interval".to_owned(), format!("{:.0}s", 4.0 * span.step)));
        for variable in list(&self.0["templating"]["list"]).filter(|one| one["type"] == "query") {
            let (name, query) = (text(&variable["name"])?, text(&variable["query"]["query"])?);
            let found = label_values(prometheus, query, span).await?;
            let kept = kept(&found, variable["regex"].as_str().unwrap_or_default())?;
            let count = kept.len();
            values.push((name.to_owned(), all_of(&kept)));
            asked.push(Asked {
                place: format!("variable {name}"),
                query: query.to_owned(),
                found: Ok(count),
            });
        }
        for (place, query, instant) in self.queries()? {
            let query = filled(query, &values);
            let found = series(prometheus, &query, instant, span).await?;
            asked.push(Asked { place, query, found });
        }
        Ok(asked)
    }

    /// Every query of panels, also those in collapsed rows, and of annotations; whether it is about one moment.
    fn queries(&self) -> Result<Vec<(String, &str, bool)>> {
        let mut queries = Vec::new();
        let inner = list(&self.0["panels"]).flat_map(|panel| list(&panel["panels"]));
        for panel in list(&self.0["panels"]).chain(inner) {
            for target in list(&panel["targets"]) {
                let place = format!("panel {} {}", text(&panel["title"])?, text(&target["refId"])?);
                queries.push((place, text(&target["expr"])?, target["instant"] == true));
            }
        }
        for annotation in list(&self.0["annotations"]["list"]) {
            let place = format!("annotation {}", text(&annotation["name"])?);
            queries.push((place, text(&annotation["expr"])?, false));
        }
        Ok(queries)
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("a text is missing")
}

/// `$name` replaced by its value; what is no variable, such as the `$1` of `label_replace`, stays.
fn filled(query: &str, values: &[(String, String)]) -> String {
    // The longest name first: one may begin with another.
    let mut values: Vec<_> = values.iter().collect();
    values.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    values
        .into_iter()
        .fold(query.to_owned(), |query, (name, value)| query.replace(&format!("${name}"), value))
}

/// The values that a variable's regular expression takes out of what was found.
fn kept(found: &[String], regex: &str) -> Result<BTreeSet<String>> {
    let Some(regex) = regex.strip_prefix('/').and_then(|regex| regex.strip_suffix('/')) else {
        return Ok(found.iter().cloned().collect());
    };
    let regex = Regex::new(regex)?;
    let take = |value: &String| Some(regex.captures(value)?.get(1)?.as_str().to_owned());
    Ok(found.iter().filter_map(take).collect())
}

/// All of them at once, in a string of PromQL that is a regular expression.
fn all_of(values: &BTreeSet<String>) -> String {
    let escaped: Vec<String> = values.iter().map(|value| regex::escape(value).replace('\\', r"\\")).collect();
    format!("({})", escaped.join("|"))
}

/// The values that `label_values(METRIC, LABEL)` stands for.
async fn label_values(prometheus: &str, query: &str, span: Span) -> Result<Vec<String>> {
    let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let (metric, label) =
        inner.and_then(|inner| inner.rsplit_once(", ")).context("label_values(METRIC, LABEL)")?;
    let data = get(
        prometheus,
        &format!("label/{label}/values"),
        &[("match[]", metric.to_owned()), ("start", span.from.to_string()), ("end", span.to.to_string())],
    )
    .await?;
    let data = data.map_err(anyhow::Error::msg)?;
    list(&data).map(|value| text(value).map(str::to_owned)).collect()
}

/// How many series have a number in them, or why Prometheus refuses the query.
async fn series(prometheus: &str, query: &str, instant: bool, span: Span) -> Result<Result<usize, String>> {
    let query = ("query", query.to_owned());
    let answer = if instant {
        get(prometheus, "query", &[query, ("time", span.to.to_string())]).await?
    } else {
        let on_steps = |time: f64| ((time / span.step).floor() * span.step).to_string();
        let (start, end) = (("start", on_steps(span.from)), ("end", on_steps(span.to)));
        get(prometheus, "query_range", &[query, start, end, ("step", span.step.to_string())]).await?
    };
    Ok(answer.map(|data| list(&data["result"]).filter(|series| has_a_number(series)).count()))
}

fn has_a_number(series: &Value) -> bool {
    let values = list(&series["values"]).chain(series.get("value"));
    values.filter_map(|pair| pair[1].as_str()).any(|value| value != "NaN")
}

/// The `data` of an answer, or the error in it.
async fn get(prometheus: &str, path: &str, query: &[(&str, String)]) -> Result<Result<Value, String>> {
    let mut url = reqwest::Url::parse(&format!("{prometheus}/api/v1/{path}"))?;
    url.query_pairs_mut().extend_pairs(query);
    // What it refuses it answers with 400 and the reason.
    let answer: Value = http::client()?.get(url).send().await?.json().await?;
    match answer["status"].as_str() {
        Some("success") => Ok(Ok(answer["data"].clone())),
        Some("error") => Ok(Err(answer["error"].as_str().unwrap_or_default().to_owned())),
        _ => bail!("no answer of Prometheus: {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<(String, String)> {
        [("instance", "(vps1|vps2)"), ("__range", "360s"), ("__rate_interval", "60s")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn variables_are_filled_and_what_is_none_stays() {
        assert_eq!(
            filled(
                r#"label_replace(a{i=~"$instance(:[0-9]+)?"}[$__rate_interval], "b", "$1", "c", "(.+)")"#,
                &values()
            ),
            r#"label_replace(a{i=~"(vps1|vps2)(:[0-9]+)?"}[60s], "b", "$1", "c", "(.+)")"#
        );
        assert_eq!(filled("increase(a[$__range])", &values()), "increase(a[360s])");
    }

    #[test]
    fn hosts_are_taken_without_their_ports_and_escaped() {
        let found = ["10.0.0.1:19847", "10.0.0.1:1", "vps"].map(str::to_owned);
        let kept = kept(&found, r"/^(.*?)(?::\d+)?$/").unwrap();
        assert_eq!(all_of(&kept), r"(10\\.0\\.0\\.1|vps)");
    }

    #[test]
    fn a_series_of_nothing_but_nan_shows_nothing() {
        let series = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert!(!has_a_number(&series(r#"{"values": [[1, "NaN"], [2, "NaN"]]}"#)));
        assert!(has_a_number(&series(r#"{"values": [[1, "NaN"], [2, "0"]]}"#)));
        assert!(has_a_number(&series(r#"{"value": [1, "+Inf"]}"#)));
    }

    #[test]
    fn queries_of_collapsed_rows_and_of_annotations_are_asked_too() {
        let dashboard = Dashboard::parse(
            r#"{"panels": [
                {"title": "Row", "panels": [{"title": "In it", "targets": [{"refId": "A", "expr": "a", "instant": true}]}]},
                {"title": "Open", "targets": [{"refId": "B", "expr": "b", "instant": false}]}
            ], "annotations": {"list": [{"name": "Alerts", "expr": "c"}]}}"#,
        )
        .unwrap();
        let places: Vec<(String, &str, bool)> = dashboard.queries().unwrap();
        assert_eq!(
            places,
            [
                ("panel Open B".to_owned(), "b", false),
                ("panel In it A".to_owned(), "a", true),
                ("annotation Alerts".to_owned(), "c", false)
            ]
        );
    }
}
