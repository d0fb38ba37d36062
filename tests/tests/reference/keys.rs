//! The keys of a JSON Schema as rows of a table: path, kind of value, default, meaning.

use serde_json::{Map, Value};

/// One key.
pub(crate) struct Key {
    path: String,
    kind: String,
    default: String,
    meaning: String,
}

/// A table of these keys.
pub(crate) fn table(keys: &[Key]) -> String {
    let mut text = String::from("| Key | Value | Default | Meaning |\n|---|---|---|---|\n");
    for key in keys {
        let [path, kind, default, meaning] =
            [&key.path, &key.kind, &key.default, &key.meaning].map(|text| crate::cell(text));
        text.push_str(&format!("| `{path}` | {kind} | {default} | {meaning} |\n"));
    }
    text
}

/// The keys of an object and, but for those in `apart`, of the objects in it.
pub(crate) fn keys(schema: &Value, prefix: &str, apart: &[&str]) -> Vec<Key> {
    let mut found = Vec::new();
    let required: Vec<&str> = names(&schema["required"]);
    for (name, value) in properties(schema) {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let is_list = has_type(value, "array");
        let path = if is_list && is_object(&value["items"]) { format!("{path}[]") } else { path };
        let default = match value.get("default") {
            // Those of sections are told key by key.
            Some(Value::Object(map)) if map.len() != 1 => String::new(),
            Some(default) => format!("`{}`", written(default)),
            None if required.contains(&name.as_str()) => "required".to_owned(),
            None => String::new(),
        };
        let meaning = value["description"].as_str().unwrap_or_default().to_owned();
        found.push(Key { path: path.clone(), kind: kind(value), default, meaning });
        if !apart.contains(&path.as_str()) {
            for inner in objects(if is_list { &value["items"] } else { value }) {
                found.extend(keys(inner, &path, apart));
            }
        }
    }
    found
}

/// What is read as YAML: a text without its quotes, a list in brackets.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("{key}: {}", written(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn properties(schema: &Value) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    schema["properties"].as_object().unwrap_or(&NONE)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn has_type(schema: &Value, wanted: &str) -> bool {
    schema["type"] == wanted || names(&schema["type"]).contains(&wanted)
}

fn variants(schema: &Value) -> impl Iterator<Item = &Value> {
    ["oneOf", "anyOf"].into_iter().flat_map(|key| schema[key].as_array()).flatten()
}

fn is_object(schema: &Value) -> bool {
    objects(schema).next().is_some()
}

/// The objects that a value may be.
fn objects(schema: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    if properties(schema).is_empty() {
        Box::new(variants(schema).flat_map(objects))
    } else {
        Box::new(std::iter::once(schema))
    }
}

/// The kind of a value in words.
fn kind(schema: &Value) -> String {
    let words: Vec<String> = words(schema);
    if !words.is_empty() {
        return words.join(", ");
    }
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    if pattern.starts_with("^(0|([0-9]+y)?") {
        return "duration".to_owned();
    }
    if pattern.contains("[1-9][0-9]*\\s*/") {
        return "N/WINDOW".to_owned();
    }
    if pattern.contains('%') {
        return "share, as 85%".to_owned();
    }
    if pattern.contains("MiB") {
        return "size, as 1GB".to_owned();
    }
    if has_type(schema, "array") {
        return format!("list of {}", plural(&kind(&schema["items"])));
    }
    for (json, word) in
        [("boolean", "true, false"), ("integer", "whole number"), ("number", "number"), ("string", "text")]
    {
        if has_type(schema, json) {
            return word.to_owned();
        }
    }
    let inner = variants(schema).find(|variant| variant["type"] != "null" && !variant["required"].is_array());
    if properties(schema).is_empty()
        && !has_type(schema, "object")
        && let Some(inner) = inner
    {
        return kind(inner);
    }
    "map".to_owned()
}

/// The words that a value may be.
fn words(schema: &Value) -> Vec<String> {
    let one = |schema: &Value| {
        let mut words: Vec<String> = names(&schema["enum"]).into_iter().map(str::to_owned).collect();
        words.extend(schema["const"].as_str().map(str::to_owned));
        words
    };
    let mut found: Vec<String> = one(schema);
    for variant in variants(schema) {
        found.extend(words(variant));
    }
    if !found.is_empty() && is_object(schema) {
        found.push("or a map".to_owned());
    }
    found
}

fn plural(kind: &str) -> String {
    match kind {
        "map" => "maps".to_owned(),
        "text" => "texts".to_owned(),
        "duration" => "durations".to_owned(),
        other => other.to_owned(),
    }
}
