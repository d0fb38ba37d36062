//! docs/actions.md: what a rule's steps can be, from the list of actions itself.

use evenkeel_host::config::parse;
use evenkeel_remediator::{
    actions::{NAMES, Step, fitting},
    policy::{Class, Deletion},
    target::Kind,
};
use serde_json::Value;

use crate::keys::{keys, table};

/// Parameters that make an action another class than it is with the fewest, and the fewest of those that need some.
const FORMS: &[&str] = &[
    "container_log_truncate: {containers: [shop_*]}",
    "hosts_alias: {address: 127.0.0.1}",
    "image_prune: {unused: true}",
    "journal_vacuum: {keep_time: 7d}",
    "run_unit: {name: tidy}",
    "run_unit: {name: tidy, class: D1}",
    "run_unit: {name: tidy, class: D2}",
    "unit_remove_reference: {from: [shop-*]}",
];

pub(crate) fn page() -> String {
    let schema: Value =
        serde_json::from_str(&evenkeel_remediator::config::schema()).expect("a schema is JSON");
    let steps = &schema["properties"]["rules"]["items"]["properties"]["steps"]["items"]["oneOf"];
    let described = steps.as_array().into_iter().flatten().find_map(|form| form["properties"].as_object());
    let described = described.expect("the schema describes the actions");
    let mut body = String::from(concat!(
        "A rule's `steps` are tried in their order until the problem is gone, each followed by a look at the host. Nothing else ",
        "than these can be done: there is no code for it. Volumes are never pruned, and no alert can say what is done.\n",
    ));
    body.push_str(&classes());
    body.push_str("\n## Actions\n\n| Action | Class | About |\n|---|---|---|\n");
    for name in NAMES {
        let about: Vec<&str> =
            Kind::ALL.into_iter().filter(|kind| fitting(*kind).contains(name)).map(Kind::as_str).collect();
        body.push_str(&format!("| [`{name}`](#{name}) | {} | {} |\n", class(name), about.join(", ")));
    }
    for name in NAMES {
        let schema = &described[*name];
        let description =
            schema["description"].as_str().unwrap_or_else(|| panic!("{name} says nothing of itself"));
        body.push_str(&format!("\n### {name}\n\n{description}\n"));
        let keys = keys(schema, "", &[]);
        if !keys.is_empty() {
            body.push_str(&format!("\n{}", table(&keys)));
        }
    }
    crate::page("Actions and classes", "the list of actions", &body)
}

/// What each class costs when it is wrong, and what lets it through.
fn classes() -> String {
    let mut text = String::from(concat!(
        "\n## Classes\n\nA class is what a step costs when it is wrong. It belongs to the action and its parameters, not to what ",
        "a user says; a rule's mode, the policy's mode and its `ceilings` say how far a class may go, `policy.deletion` whether ",
        "it may delete.\n\n| Class | Is | Takes `policy.deletion` |\n|---|---|---|\n",
    ));
    for class in Class::ALL {
        let least =
            [Deletion::None, Deletion::Cache, Deletion::Data].into_iter().find(|policy| policy.allows(class));
        let least = least.map_or("nothing allows it", Deletion::as_str);
        text.push_str(&format!("| {} | {} | `{least}` |\n", class.as_str(), class.words()));
    }
    text
}

/// The action's class, with those that parameters make of it.
fn class(name: &str) -> String {
    let forms = FORMS.iter().copied().filter(|form| form.split(':').next() == Some(name));
    let mut classes: Vec<String> = Vec::new();
    for form in std::iter::once(name).chain(forms) {
        // Some are nothing without parameters.
        let Ok(steps) = parse::<Vec<Step>>("form", &format!("- {form}\n")) else { continue };
        let class = steps[0].0.class().as_str();
        match form.split_once(": ") {
            Some((_, parameters))
                if !classes.is_empty() && !classes.iter().any(|known| known.starts_with(class)) =>
            {
                classes.push(format!("{class} with `{parameters}`"));
            }
            _ if classes.is_empty() => classes.push(class.to_owned()),
            _ => {}
        }
    }
    assert!(!classes.is_empty(), "{name} needs parameters: add its shortest form to FORMS");
    classes.join(", ")
}
