//! Readers of both metrics formats that take nothing but what the formats' own documents allow. Written from those, and
//! not from what the exporter does.

use std::collections::{BTreeMap, BTreeSet};

/// One sample: name, labels, value as written.
pub(crate) type Series = (String, BTreeMap<String, String>, String);

/// Reads the classic text format 0.0.4.
pub(crate) fn classic(text: &str) -> Result<Vec<Series>, String> {
    read(text, "untyped", |name, family, _| name == family)
}

/// Reads OpenMetrics 1.0.
pub(crate) fn openmetrics(text: &str) -> Result<Vec<Series>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with its end mark")?;
    read(body, "unknown", |name, family, kind| match kind {
        "counter" => name.strip_suffix("_total") == Some(family),
        _ => name == family,
    })
}

/// Both formats have the same lines; which names belong to a family differs.
fn read(text: &str, unknown: &str, belongs: fn(&str, &str, &str) -> bool) -> Result<Vec<Series>, String> {
    let (mut series, mut families, mut seen) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut family: Option<(&str, &str)> = None;
    let mut described = None;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    for line in text.split_terminator('\n') {
        let wrong = |what: &str| Err(format!("{what}: {line:?}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else { return wrong("no description") };
            if !is_name(name) || !is_escaped(help) || !families.insert(name) {
                return wrong("not a description of a new family");
            }
            described = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { return wrong("no type") };
            if described != Some(name) || !["gauge", "counter", unknown].contains(&kind) {
                return wrong("not the type of what was described");
            }
            family = Some((name, kind));
        } else {
            let sample = sample(line).ok_or_else(|| format!("no sample: {line:?}"))?;
            match family {
                Some((name, kind)) if belongs(&sample.0, name, kind) => {}
                _ => return wrong("a sample outside its family"),
            }
            if !seen.insert((sample.0.clone(), sample.1.clone())) {
                return wrong("a series twice");
            }
            series.push(sample);
        }
    }
    Ok(series)
}

fn sample(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            if !is_label(key) || labels.insert(key.to_owned(), value).is_some() {
                return None;
            }
            match (after.strip_prefix(','), after.strip_prefix('}')) {
                (Some(more), _) => rest = more,
                (None, Some(end)) => {
                    rest = end;
                    break;
                }
                (None, None) => return None,
            }
        }
    }
    let value = rest.strip_prefix(' ')?;
    let is_number = !value.is_empty() && !value.contains(' ') && value.parse::<f64>().is_ok();
    (is_name(name) && is_number).then(|| (name.to_owned(), labels, value.to_owned()))
}

/// The text up to the closing quote, and what follows it. Only `\\`, `\"` and `\n` are escapes.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut letters) = (String::new(), text.char_indices());
    loop {
        match letters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match letters.next()?.1 {
                '\\' => '\\',
                '"' => '"',
                'n' => '\n',
                _ => return None,
            }),
            (_, other) => value.push(other),
        }
    }
}

/// In a description only `\\` and `\n` are escapes.
fn is_escaped(help: &str) -> bool {
    let mut letters = help.chars();
    while let Some(letter) = letters.next() {
        if letter == '\\' && !matches!(letters.next(), Some('\\' | 'n')) {
            return false;
        }
    }
    true
}

fn is_name(name: &str) -> bool {
    is_word(name, |c| c == ':')
}

fn is_label(name: &str) -> bool {
    is_word(name, |_| false)
}

fn is_word(name: &str, also: fn(char) -> bool) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || also(c);
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(legal)
}
