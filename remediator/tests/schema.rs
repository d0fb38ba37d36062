//! The JSON Schema of the configuration, as editors use it: the file that is shipped is the one that is generated, it
//! takes what is right, marks what the remediator would refuse for its shape, and tells the defaults that hold.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::remediator;
use evenkeel_host::config::parse;
use evenkeel_remediator::config;
use regex::Regex;
use serde_json::{Map, Value, json};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs");

fn shipped(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&shipped("packaging/remediator.schema.json")).unwrap()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(CONFIGS).join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yml"));
    files.sort();
    files
}

/// What an editor would mark in a file; also that it is no YAML, or says a key twice.
fn marked(schema: &Value, text: &str) -> Vec<String> {
    match parse::<Value>("f.yml", text) {
        Ok(value) => check(schema, &value, ""),
        Err(error) => vec![error.to_string()],
    }
}

/// No configuration is needed to get it.
#[test]
fn the_shipped_file_is_what_is_generated() {
    let folder = tempfile::tempdir().unwrap();
    let ran = remediator(folder.path(), &["--config.file", "no/such.yml", "generate", "schema"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let hint = "evenkeel-remediator generate schema > packaging/remediator.schema.json";
    assert_eq!(ran.stdout, shipped("packaging/remediator.schema.json"), "{hint}");
}

#[test]
fn what_is_right_is_not_marked() {
    let schema = schema();
    for path in files("good").into_iter().chain(files("generate")) {
        // Prometheus' own file lies beside what it was made from.
        if path.to_string_lossy().ends_with(".alertmanager.yml") {
            continue;
        }
        let marked = marked(&schema, &fs::read_to_string(&path).unwrap());
        assert!(marked.is_empty(), "{}: {marked:#?}", path.display());
    }
    let example = shipped("packaging/remediator.yml");
    assert_eq!(marked(&schema, &example), Vec::<String>::new());
    assert!(example.starts_with("# yaml-language-server: $schema=remediator.schema.json\n"));
    let blocks = yaml_blocks(&shipped("README.md"));
    assert!(!blocks.is_empty());
    for block in blocks {
        assert_eq!(marked(&schema, &block), Vec::<String>::new(), "{block}");
    }
}

/// The examples that stand in comments are right as well: by the schema, and by the remediator itself.
#[test]
fn what_the_comments_of_the_example_show_is_right() {
    let example = shipped("packaging/remediator.yml");
    let (_, rest) = example.split_once("# More that rules can do").unwrap();
    let (rules, steps) = rest.split_once("# Further steps for a disk").unwrap();
    let bare = |text: &str| {
        let lines = text.lines().skip(1).map(|line| line.strip_prefix('#').unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (_, steps) = steps.split_once("#\n").unwrap();
    let disk = format!(
        "   - name: of-the-example\n     match: ['alertname=\"HostDiskHigh\"']\n     target: {{filesystem: mountpoint, allow: [/]}}\n     \
         verify: {{usage_below: 80%, within: 5m}}\n     steps:\n{}",
        bare(&format!("\n{steps}"))
    );
    let text = format!(
        "server: {{auth: none}}\npolicy: {{deletion: data}}\nsnapshot: {{units: [shop.target]}}\nrules:\n{}\n{disk}\n",
        bare(rules)
    );
    assert_eq!(marked(&schema(), &text), Vec::<String>::new(), "{text}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.yml"), &text).unwrap();
    let ran = remediator(folder.path(), &["--config.file", "r.yml", "check-config"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{text}");
    for name in ["unit-stale", "inodes-high", "of-the-example"] {
        assert!(ran.stdout.contains(&format!("\n{name} (mode plan)\n")), "{name}: {}", ran.stdout);
    }
}

/// What the remediator refuses because of a key, its type, or a word that it does not know, an editor marks. What two
/// keys mean together, and what a file holds that is named, only the remediator knows.
#[test]
fn what_has_a_wrong_shape_is_marked() {
    let schema = schema();
    let of_shape =
        ["unknown key", "missing key", "unknown value", "duplicate key", "expected", "not valid YAML"];
    let mut count = 0;
    for path in files("bad") {
        let refused = fs::read_to_string(path.with_extension("stderr")).unwrap();
        let first = refused.lines().next().unwrap();
        if of_shape.iter().any(|words| first.contains(words)) {
            count += 1;
            let marked = marked(&schema, &fs::read_to_string(&path).unwrap());
            assert!(!marked.is_empty(), "{} is not marked, and is refused: {first}", path.display());
        }
    }
    assert!(count > 12, "only {count} files");
    for (text, words) in [
        ("rules: [{name: 'a b', on_demand: true, needed: {always: true}, steps: [notify]}]", "/rules/0/name"),
        ("policy: {limits: {S2: [6 per hour]}}", "/policy/limits/S2/0"),
        ("policy: {gates: {grace: 5 minutes}}", "/policy/gates/grace"),
        ("policy: {gates: {stall: 0.8}}", "/policy/gates/stall"),
        ("policy: {ceilings: {S2: manual}}", "/policy/ceilings/S2"),
        ("notify: [{slack: {url: 'https://hooks.slack.example/x'}}]", "/notify/0"),
        ("rules: [{name: a, on_demand: true, steps: [{image_prune: {min_age: 30}}]}]", "/rules/0/steps/0"),
        ("rules: [{name: a, on_demand: true, steps: [journal_vacuum]}]", "/rules/0/steps/0"),
    ] {
        let marked = marked(&schema, text);
        assert!(marked.iter().any(|mark| mark.starts_with(words)), "{text}: {marked:#?}");
    }
}

/// Every default that the schema tells, written out: nothing changes.
#[test]
fn the_defaults_that_are_told_are_those_that_hold() {
    let schema = schema();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.yml");
    let load = |value: &Value| {
        fs::write(&path, value.to_string()).unwrap();
        format!("{:#?}", config::load(&path).unwrap_or_else(|error| panic!("{error}\n{value:#}")))
    };
    let mut whole = defaults(&schema);
    assert_eq!(whole["policy"]["gates"]["grace"], "5m");
    let server = json!({"auth": "none"});
    whole["server"]["auth"] = json!("none");
    assert_eq!(load(&json!({"server": server})), load(&whole));

    // A rule, and each action that needs nothing said.
    let rule_schema = &schema["properties"]["rules"]["items"];
    let actions = &rule_schema["properties"]["steps"]["items"]["oneOf"][1]["properties"];
    let needed = json!({"container_log_truncate": {"containers": ["a"]}, "run_unit": {"name": "a"},
                        "journal_vacuum": {"keep_time": "7d"}});
    for (action, parameters) in actions.as_object().unwrap() {
        for kind in ["filesystem", "unit", "container"] {
            let verify = match kind {
                "filesystem" => json!({"usage_below": "80%", "within": "5m"}),
                "unit" => json!({"active_for": "10s", "within": "5m"}),
                _ => json!({"healthy_for": "10s", "within": "5m"}),
            };
            let given = needed.get(action).cloned().unwrap_or_else(|| json!({}));
            let rule = json!({"name": "a", "match": ["a=\"b\""], "target": {kind: "label", "allow": ["/", "a.service"]},
                              "verify": verify, "steps": [{action: given}]});
            let config = |rule: &Value| json!({"server": server, "rules": [rule]});
            fs::write(&path, config(&rule).to_string()).unwrap();
            if config::load(&path).is_err() {
                // It cannot be done about such a thing.
                continue;
            }
            let mut told = merged(&defaults(rule_schema), &rule);
            told["steps"] = json!([{action: merged(&defaults(parameters), &given)}]);
            assert_eq!(load(&config(&rule)), load(&config(&told)), "{action}");
        }
    }
}

/// The defaults of an object's keys, and of the objects in it.
fn defaults(schema: &Value) -> Value {
    let mut found = Map::new();
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let inner = defaults(property);
        if let Some(default) = property.get("default").filter(|default| !default.is_object()) {
            found.insert(key.clone(), default.clone());
        } else if inner.as_object().is_some_and(|inner| !inner.is_empty())
            && property.get("required").is_none()
        {
            found.insert(key.clone(), inner);
        }
    }
    Value::Object(found)
}

fn merged(one: &Value, over: &Value) -> Value {
    let mut merged = one.as_object().unwrap().clone();
    merged.extend(over.as_object().unwrap().clone());
    Value::Object(merged)
}

/// The configurations of the remediator that a document shows.
fn yaml_blocks(document: &str) -> Vec<String> {
    let blocks =
        document.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned()));
    blocks.filter(|block| block.contains("rules:") && block.contains("policy:")).collect()
}

/// What is wrong with a value, each with its place. Knows the keywords that the schema is made of, and no other: one
/// that is not checked here would be one that a test takes for kept.
fn check(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (keyword, wanted) in schema.as_object().unwrap() {
        let holds = match keyword.as_str() {
            "$schema" | "title" | "description" | "default" | "examples" | "format" => true,
            "type" => types(wanted).iter().any(|wanted| is_of(wanted, value)),
            "enum" => wanted.as_array().unwrap().contains(value),
            "const" => wanted == value,
            "pattern" => {
                let pattern = Regex::new(wanted.as_str().unwrap()).unwrap();
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "minLength" => value.as_str().is_none_or(|text| text.chars().count() >= count(wanted)),
            "minimum" => value.as_f64().is_none_or(|number| number >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= wanted.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|number| number > wanted.as_f64().unwrap()),
            "minItems" => value.as_array().is_none_or(|items| items.len() >= count(wanted)),
            "minProperties" => value.as_object().is_none_or(|keys| keys.len() >= count(wanted)),
            "maxProperties" => value.as_object().is_none_or(|keys| keys.len() <= count(wanted)),
            "required" => value.as_object().is_none_or(|keys| {
                wanted.as_array().unwrap().iter().all(|key| keys.contains_key(key.as_str().unwrap()))
            }),
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    wrong.extend(check(wanted, item, &format!("{place}/{index}")));
                }
                true
            }
            "properties" => {
                for (key, property) in wanted.as_object().unwrap() {
                    let given = value.as_object().and_then(|keys| keys.get(key));
                    wrong.extend(
                        given.into_iter().flat_map(|given| check(property, given, &format!("{place}/{key}"))),
                    );
                }
                true
            }
            "additionalProperties" => {
                assert_eq!(*wanted, json!(false));
                let known = |key: &String| schema["properties"].get(key).is_some();
                value.as_object().is_none_or(|keys| keys.keys().all(known))
            }
            "anyOf" | "oneOf" => {
                let fitting =
                    wanted.as_array().unwrap().iter().filter(|one| check(one, value, place).is_empty());
                let fitting = fitting.count();
                // A value that is none, where there may be none, is measured by its type alone.
                value.is_null() || if keyword == "oneOf" { fitting == 1 } else { fitting > 0 }
            }
            unknown => panic!("the schema has the keyword {unknown}, which this test does not know"),
        };
        if !holds {
            wrong.push(format!("{place}: {keyword} {wanted} does not hold for {value}"));
        }
    }
    wrong
}

fn types(wanted: &Value) -> Vec<&str> {
    match wanted {
        Value::String(one) => vec![one],
        several => several.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect(),
    }
}

fn is_of(wanted: &str, value: &Value) -> bool {
    match wanted {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("no such type: {other}"),
    }
}

fn count(wanted: &Value) -> usize {
    usize::try_from(wanted.as_u64().unwrap()).unwrap()
}

/// The checker itself: what would let everything through would make the tests above worthless.
#[test]
fn the_checker_marks_what_it_should() {
    let schema = json!({"type": "object", "properties": {"a": {"type": ["string", "null"], "pattern": "^x"}},
                        "required": ["a"], "additionalProperties": false});
    let marks = |value: Value| check(&schema, &value, "").len();
    assert_eq!(marks(json!({"a": "xy"})), 0);
    assert_eq!(marks(json!({"a": null})), 0);
    for value in [json!({"a": "y"}), json!({"a": 1}), json!({}), json!({"a": "x", "b": 1}), json!([])] {
        assert_eq!(marks(value.clone()), 1, "{value}");
    }
    let one = json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert_eq!(check(&one, &json!({"a": 1}), "").len(), 0);
    assert_eq!(check(&one, &json!({"a": 1, "b": 1}), "").len(), 1);
    assert_eq!(check(&one, &json!({}), "").len(), 1);
}
