//! The polkit rule (polkit(8)): units × verbs.
//!
//! It never grants `org.freedesktop.systemd1.reload-daemon`: that has no unit to bound it, and lets its holder execute
//! systemd anew as well.

use std::fmt::Write as _;

use super::{USER, permissions, regex};
use crate::{actions::Permission, config::Config, pattern::Pattern, rules::Rule};

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
    return !isNever && fits(targets) ? polkit.Result.YES : polkit.Result.NO;
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
            Permission::Docker { .. } => None,
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

/// What a unit's name is made of: systemd.unit(5).
fn unit_regex(pattern: &Pattern) -> Option<String> {
    regex(pattern, r"A-Za-z0-9:_.\\@-", |letter| letter.is_ascii_alphanumeric() || r":_.\@-".contains(letter))
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String never fails.
    let _ = text.write_fmt(line);
}
