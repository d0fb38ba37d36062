//! Hides what may be secret in the texts of configuration errors: they end up in logs and terminals. A masked text has
//! as many characters as before, so that the mark below a line stays where it belongs.

/// A key that ends in one of these holds a secret. Keys that name a file (`url_file`) do not.
const SECRET: [&str; 7] = ["url", "urls", "password", "passphrase", "token", "secret", "credentials"];

/// Whether the last named key of a path such as `notify[0].webhook.url` holds a secret.
pub(super) fn is_secret_path(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    is_secret(last.split('[').next().unwrap_or(last))
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRET
        .iter()
        .any(|word| key.strip_suffix(word).is_some_and(|rest| rest.is_empty() || rest.ends_with(['_', '-'])))
}

/// A line of a file: the values of secret keys and whatever stands behind `://`.
pub(super) fn line(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(colon) = rest.find(':') {
        let (before, after) = rest.split_at(colon);
        let key: &str = before
            .trim_end_matches(['"', '\''])
            .rsplit(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
            .next()
            .unwrap_or_default();
        out.push_str(before);
        out.push(':');
        rest = &after[1..];
        if is_secret(key) {
            let spaces = rest.len() - rest.trim_start().len();
            let (space, value) = rest.split_at(spaces);
            let end = end_of_value(value);
            out.push_str(space);
            out.extend(value[..end].chars().map(|_| '*'));
            rest = &value[end..];
        }
    }
    out.push_str(rest);
    urls(&out)
}

/// Everything behind `://` up to what cannot be part of a URL.
pub(super) fn urls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'`,{}[]<>".contains(c)).unwrap_or(after.len());
        out.extend(after[..end].chars().map(|_| '*'));
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// Where a value ends, in bytes: at its closing quote, at the end of its list or map, else with the line.
fn end_of_value(value: &str) -> usize {
    let closed = |quote| value[1..].find(quote).map_or(value.len(), |end| end + 2);
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => closed(quote),
        _ => value.find([',', '}', ']']).unwrap_or(value.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_not() {
        for (text, expected) in [
            ("  url: abc", "  url: ***"),
            ("  \"url\": \"a b, c\", on: x", "  \"url\": ********, on: x"),
            ("{webhook: {url: abc, on: [x]}}", "{webhook: {url: ***, on: [x]}}"),
            ("url_file: /etc/x", "url_file: /etc/x"),
            ("bearer_token: abc", "bearer_token: ***"),
            ("bearer_token_files: [a.token]", "bearer_token_files: [a.token]"),
            ("match: ['a=\"b\"']", "match: ['a=\"b\"']"),
            ("listen: [127.0.0.1:80]", "listen: [127.0.0.1:80]"),
            ("redis: redis://:pw@h/0 # x", "redis: redis://******* # x"),
            ("- https://a/b: c", "- https://**** c"),
            ("url: ü", "url: *"),
            ("url: \"open", "url: *****"),
            ("url:", "url:"),
        ] {
            assert_eq!(line(text), expected);
            assert_eq!(line(text).chars().count(), text.chars().count());
        }
    }

    #[test]
    fn a_path_is_judged_by_its_last_key() {
        for path in ["url", "notify[0].webhook.url", "redis.password", "a.urls[1]", "x.API-Token"] {
            assert!(is_secret_path(path), "{path}");
        }
        for path in ["", "notify[0].webhook.url_file", "server.listen", "curls", "tokens_per_minute"] {
            assert!(!is_secret_path(path), "{path}");
        }
    }
}
