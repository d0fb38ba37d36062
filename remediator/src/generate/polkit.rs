//! The polkit rule (polkit(8)): units × verbs.
//!
//! It never grants `org.freedesktop.systemd1.reload-daemon`: that has no unit to bound it, and lets its holder execute
//! systemd anew as well.

use std::fmt::Write as _;

use super::{USER, permissions, regex};
use crate::{actions::Permission, config::Config, instance::escape, pattern::Pattern, rules::Rule};

/// The letters of units' names, inside of a bracket expression: systemd.unit(5).
const LETTERS: &str = r"A-Za-z0-9:_.\\@-";

const HEAD: &str = r#"// Written by evenkeel-remediator from its configuration; write it again when that has changed:
//
//   evenkeel-remediator generate polkit > /etc/polkit-1/rules.d/50-evenkeel.rules
//
// It lets the remediator's user do to systemd what the rules below need, and refuses it everything else there, also
// what another file would allow.
polkit.addRule(function (action, subject) {
    if (subject.user !== "USER" || action.id.indexOf("org.freedesktop.systemd1.") !== 0) {
        return polkit.Result.NOT_HANDLED;
    }
    // Reading unit files anew, enabling and masking name no unit here: never.
    if (action.id !== "org.freedesktop.systemd1.manage-units") {
        return polkit.Result.NO;
    }
    var unit = action.lookup("unit");
    var verb = action.lookup("verb");
    function fits(list) {
        return list.some(function (one) {
            return one[0] === verb && one[1].test(unit);
        });
    }

"#;

const TAIL: &str = r#"
    var isNever = never.some(function (one) {
        return one.test(unit);
    });
    return (!isNever && fits(targets)) || fits(helpers) ? polkit.Result.YES : polkit.Result.NO;
});
"#;

/// The whole file.
pub(super) fn rule(config: &Config) -> String {
    let mut text = HEAD.replace("USER", USER);
    text.push_str("    // What rules may do to their own targets.\n    var targets = [\n");
    for rule in &config.rules {
        targets(rule, &mut text);
    }
    text.push_str(
        "    ];\n    // Units that hold the host up, whatever the list above says.\n    var never = [\n",
    );
    for pattern in config.deny.patterns() {
        if let Some(unit) = unit_regex(pattern) {
            push(&mut text, format_args!("        /^{unit}$/,\n"));
        }
    }
    text.push_str(
        "    ];\n    // Root-owned templates that do for a rule what takes root.\n    var helpers = [\n",
    );
    for rule in &config.rules {
        helpers(rule, &mut text);
    }
    text.push_str("    ];");
    text + TAIL
}

fn targets(rule: &Rule, text: &mut String) {
    let units: Vec<String> = rule.selector.allow.iter().filter_map(unit_regex).collect();
    let permissions = permissions(rule);
    let verbs: Vec<_> = permissions
        .iter()
        .filter_map(|permission| match permission {
            Permission::Unit(verb) => Some(verb),
            _ => None,
        })
        .collect();
    if verbs.is_empty() {
        return;
    }
    push(text, format_args!("        // {}\n", rule.name));
    for verb in verbs {
        for unit in &units {
            push(text, format_args!("        [\"{verb}\", /^{unit}$/],\n"));
        }
    }
}

fn helpers(rule: &Rule, text: &mut String) {
    let mut lines = String::new();
    for permission in permissions(rule) {
        let (template, before) = match &permission {
            Permission::Helper(template) => (*template, format!("{}:", escape(&rule.name))),
            Permission::Template(template) => (template.as_str(), String::new()),
            _ => continue,
        };
        let (name, suffix) = template.split_once('@').unwrap_or((template, ""));
        for pattern in &rule.selector.allow {
            let unit = format!(
                "{}@{}{}{}",
                literal(name),
                literal(&before),
                instance_regex(pattern),
                literal(suffix)
            );
            push(&mut lines, format_args!("        [\"start\", /^{unit}$/],\n"));
        }
    }
    if !lines.is_empty() {
        push(text, format_args!("        // {}\n{lines}", rule.name));
    }
}

/// The names that a pattern fits, as `systemd-escape` writes them (`instance::escape`).
fn instance_regex(pattern: &Pattern) -> String {
    let mut regex = String::new();
    for (place, character) in pattern.to_string().chars().enumerate() {
        match character {
            '*' => regex.push_str(&format!("[{LETTERS}]*")),
            // One character, which may be up to four bytes, each written as \xNN.
            '?' => regex.push_str(r"(?:[A-Za-z0-9:_.-]|(?:\\x[0-9a-f]{2}){1,4})"),
            // A dot is escaped at the beginning only.
            '.' if place > 0 => regex.push_str(r"\."),
            other => regex.push_str(&literal(&escape(other.encode_utf8(&mut [0; 4])))),
        }
    }
    regex
}

/// A part of a unit's name, which has no other special letters.
fn literal(text: &str) -> String {
    text.replace('\\', r"\\").replace('.', r"\.")
}

/// What a unit's name is made of: systemd.unit(5).
fn unit_regex(pattern: &Pattern) -> Option<String> {
    regex(pattern, LETTERS, |letter| letter.is_ascii_alphanumeric() || r":_.\@-".contains(letter))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String never fails.
    let _ = text.write_fmt(line);
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;
    use crate::instance;

    /// What the remediator starts is what the rule allows, whatever the names.
    #[test]
    fn instances_fit_the_expression_of_their_pattern() {
        for (pattern, name, fits) in [
            ("/", "/", true),
            ("/var/*", "/var/lib/docker", true),
            ("/var/*", "/srv", false),
            ("/srv/a b", "/srv/a b", true),
            ("shop-?.service", "shop-1.service", true),
            ("shop-?.service", "shop-12.service", false),
            ("x?y", "x-y", true),
            ("x?y", "xüy", true),
            (".a.b", ".a.b", true),
            (".a.b", "xa.b", false),
            ("a$b|.*", "a$b|", false),
            ("a$b|.*", "a$b|.c", true),
        ] {
            let expression = Regex::new(&format!("^{}$", instance_regex(&pattern.parse().unwrap()))).unwrap();
            assert_eq!(expression.is_match(&instance::escape(name)), fits, "{pattern} {name}");
        }
    }
}
