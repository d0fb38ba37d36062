//! Pages for people: the frame that every page has, and the rules by which a browser only shows it. What stands on a
//! page is its owner's; what others said goes through [`Escaped`].

use std::fmt::{self, Write};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY},
};
use ring::digest::{SHA256, digest};

use super::{Response, reply};

/// A page of our own with its style sheet. It loads nothing and runs nothing: the one sheet is admitted by its hash,
/// and text that slipped through as markup could neither style itself nor send anything anywhere.
pub fn respond(title: &str, style: &str, body: &str) -> Response {
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        Escaped(title)
    );
    let mut response = reply::with_type(StatusCode::OK, "text/html; charset=utf-8", Bytes::from(page));
    let mut set = |name: HeaderName, value| {
        response.headers_mut().insert(name, value);
    };
    set(CONTENT_SECURITY_POLICY, policy(style));
    set(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    set(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Nothing but this sheet.
fn policy(style: &str) -> HeaderValue {
    let hash = BASE64_STANDARD.encode(digest(&SHA256, style.as_bytes()));
    let text = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    // Base64 is always a header's text.
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// Text of others, as text: in an element or in a quoted attribute.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_only_be_shown_and_only_its_own_sheet_holds() {
        let response = respond("<b> & co", "", "");
        let header = |name: HeaderName| response.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(
            header(CONTENT_SECURITY_POLICY),
            // The SHA-256 of nothing (FIPS 180-4).
            "default-src 'none'; style-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        assert_eq!(header(hyper::header::X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert_eq!(
            (header(CACHE_CONTROL), header(REFERRER_POLICY)),
            ("no-store".into(), "no-referrer".into())
        );
        assert_ne!(policy("a{}"), policy("b{}"));
    }

    #[test]
    fn markup_of_others_stays_text() {
        let text = Escaped("<script>alert(\"x\")</script> & 'more' ü").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#39;more&#39; ü");
    }
}
