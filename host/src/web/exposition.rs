//! Metrics as an answer: OpenMetrics 1.0 or the classic format 0.0.4, whichever the client likes better, gzipped if it may
//! be.
//!
//! Rules of negotiation: <https://prometheus.io/docs/instrumenting/content_negotiation/>.

use std::sync::{Arc, LazyLock};

use hyper::body::Bytes;
use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, HeaderValue, VARY},
};

use super::{Response, reply};
use crate::metrics::{
    Block, Format,
    gzip::{self, Part},
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is shorter is copied to its neighbours: each piece that goes to the kernel by itself costs more than that.
const SHORT: usize = 4 << 10;

/// The end mark of OpenMetrics.
const EOF: &[u8] = b"# EOF\n";
static EOF_DEFLATED: LazyLock<Arc<Part>> = LazyLock::new(|| Arc::new(Part::of(EOF)));

/// One look, which several requests may share: the blocks one after the other.
#[derive(Debug)]
pub struct Exposition {
    blocks: Vec<Arc<Block>>,
}

impl Exposition {
    /// Of blocks that describe no name twice.
    pub fn new(blocks: Vec<Arc<Block>>) -> Self {
        Self { blocks }
    }

    /// Answers in the format that `Accept` and `Accept-Encoding` ask for. What is long is not copied: the answer consists
    /// of what the blocks keep.
    pub fn respond(&self, headers: &HeaderMap) -> Response {
        let (content_type, format) = if wants_openmetrics(headers) {
            (OPENMETRICS, Format::OpenMetrics)
        } else {
            (CLASSIC, Format::Classic)
        };
        let gzip = accepts_gzip(headers);
        let body = if gzip { self.gzipped(format) } else { self.plain(format) };
        let mut response = reply::with_type(StatusCode::OK, content_type, gathered(body));
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    fn plain(&self, format: Format) -> Vec<Bytes> {
        let end = (format == Format::OpenMetrics).then_some(Bytes::from_static(EOF));
        self.blocks.iter().flat_map(|block| block.text(format)).chain(end).collect()
    }

    fn gzipped(&self, format: Format) -> Vec<Bytes> {
        let end = (format == Format::OpenMetrics).then(|| Arc::clone(&EOF_DEFLATED));
        let parts: Vec<_> = self.blocks.iter().map(|block| block.deflated(format)).chain(end).collect();
        gzip::member(parts.iter().map(Arc::as_ref))
    }
}

/// The same bytes in fewer pieces.
fn gathered(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let (mut gathered, mut short) = (Vec::new(), Vec::new());
    for piece in pieces {
        if piece.len() < SHORT {
            short.extend_from_slice(&piece);
            continue;
        }
        if !short.is_empty() {
            gathered.push(Bytes::from(std::mem::take(&mut short)));
        }
        gathered.push(piece);
    }
    gathered.push(short.into());
    gathered
}

/// Whether OpenMetrics 1.0 is named and liked at least as much as plain text. Wildcards alone never choose it: what
/// sends them (browsers, curl) wants text, and text is the last resort.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let mut openmetrics: f32 = 0.0;
    // The most specific range that covers plain text decides how much it is liked.
    let mut plain = (0, 0.0);
    for range in elements(headers, &ACCEPT) {
        let version = range.parameter("version");
        match range.name {
            name if name.eq_ignore_ascii_case("application/openmetrics-text") => {
                if matches!(version, None | Some("1.0.0")) {
                    openmetrics = openmetrics.max(range.quality);
                }
            }
            name if name.eq_ignore_ascii_case("text/plain") => {
                let specific = if version == Some("0.0.4") { 4 } else { 3 };
                if matches!(version, None | Some("0.0.4")) && plain.0 < specific {
                    plain = (specific, range.quality);
                }
            }
            name if name.eq_ignore_ascii_case("text/*") && plain.0 < 2 => plain = (2, range.quality),
            "*/*" if plain.0 < 1 => plain = (1, range.quality),
            _ => {}
        }
    }
    openmetrics > 0.0 && openmetrics >= plain.1
}

/// Whether gzip may be used: named with a weight above zero, or covered by `*`.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut any = false;
    for coding in elements(headers, &ACCEPT_ENCODING) {
        if coding.name.eq_ignore_ascii_case("gzip") || coding.name.eq_ignore_ascii_case("x-gzip") {
            return coding.quality > 0.0;
        }
        any |= coding.name == "*" && coding.quality > 0.0;
    }
    any
}

/// One element of a negotiation header: `text/plain;version=0.0.4;q=0.5`.
struct Element<'a> {
    name: &'a str,
    parameters: &'a str,
    quality: f32,
}

impl<'a> Element<'a> {
    fn parse(text: &'a str) -> Self {
        let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
        let mut element = Self { name: name.trim(), parameters, quality: 1.0 };
        if let Some(quality) = element.parameter("q") {
            // A weight that makes no sense is no wish.
            element.quality = quality.parse::<f32>().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
        }
        element
    }

    fn parameter(&self, wanted: &str) -> Option<&'a str> {
        self.parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"'))
        })
    }
}

fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Element<'a>> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(Element::parse).filter(|element| !element.name.is_empty())
}

#[cfg(feature = "foreign-input")]
pub(super) fn negotiate(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, value.clone());
    headers.insert(ACCEPT_ENCODING, value);
    let _ = (wants_openmetrics(&headers), accepts_gzip(&headers));
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;
    use hyper::header::CONTENT_TYPE;

    use super::*;
    use crate::metrics::Family;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, HeaderValue::from_str(value).expect("a header value"));
        }
        map
    }

    /// A gauge and a counter in blocks of their own, and a label value that tries to break out.
    fn exposition() -> Exposition {
        let mut state = Family::gauge("systemd_unit_state", "Whether the unit is in the state.");
        state.sample(&[("name", "a\"} 1\nforged 2\n\\"), ("state", "active")], 1.0);
        state.sample(&[("name", "# HELP forged x"), ("state", "failed")], 0.0);
        let restarts = Family::counter("systemd_service_restart_total", "Restarts by systemd.");
        let restarts = restarts.with(&[("name", "a.service")], 3.0);
        let blocks = [vec![state], vec![], vec![restarts]].map(|families| Arc::new(Block::new(families)));
        Exposition::new(blocks.into())
    }

    const GOLDEN_OPENMETRICS: &str = "# HELP systemd_unit_state Whether the unit is in the state.\n\
        # TYPE systemd_unit_state gauge\n\
        systemd_unit_state{name=\"# HELP forged x\",state=\"failed\"} 0.0\n\
        systemd_unit_state{name=\"a\\\"} 1\\nforged 2\\n\\\\\",state=\"active\"} 1.0\n\
        # HELP systemd_service_restart Restarts by systemd.\n\
        # TYPE systemd_service_restart counter\n\
        systemd_service_restart_total{name=\"a.service\"} 3.0\n\
        # EOF\n";

    const GOLDEN_CLASSIC: &str = "# HELP systemd_unit_state Whether the unit is in the state.\n\
        # TYPE systemd_unit_state gauge\n\
        systemd_unit_state{name=\"# HELP forged x\",state=\"failed\"} 0.0\n\
        systemd_unit_state{name=\"a\\\"} 1\\nforged 2\\n\\\\\",state=\"active\"} 1.0\n\
        # HELP systemd_service_restart_total Restarts by systemd.\n\
        # TYPE systemd_service_restart_total counter\n\
        systemd_service_restart_total{name=\"a.service\"} 3.0\n";

    async fn body(response: Response) -> Bytes {
        response.into_body().collect().await.expect("a whole body").to_bytes()
    }

    #[tokio::test]
    async fn both_formats_are_golden() {
        let response =
            exposition().respond(&headers(&[(ACCEPT, "application/openmetrics-text; version=1.0.0")]));
        assert_eq!(response.headers()[CONTENT_TYPE], OPENMETRICS);
        assert_eq!(body(response).await, GOLDEN_OPENMETRICS);

        let response = exposition().respond(&HeaderMap::new());
        assert_eq!(response.headers()[CONTENT_TYPE], CLASSIC);
        assert!(!response.headers().contains_key(CONTENT_ENCODING));
        assert_eq!(body(response).await, GOLDEN_CLASSIC);
    }

    #[tokio::test]
    async fn gzip_holds_the_same_text() {
        let exposition = exposition();
        for (accept, golden) in
            [("*/*", GOLDEN_CLASSIC), ("application/openmetrics-text", GOLDEN_OPENMETRICS)]
        {
            let wanted = headers(&[(ACCEPT, accept), (ACCEPT_ENCODING, "deflate, gzip;q=0.5")]);
            let response = exposition.respond(&wanted);
            assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
            let mut text = String::new();
            flate2::read::GzDecoder::new(&body(response).await[..]).read_to_string(&mut text).expect("gzip");
            assert_eq!(text, golden);
        }
    }

    #[test]
    fn short_pieces_are_gathered_and_long_ones_stay() {
        let pieces = ["a", "b", &"l".repeat(SHORT), "c", "", "d"].map(|text| Bytes::from(text.to_owned()));
        let gathered = gathered(pieces.to_vec());
        assert_eq!((&gathered[0][..], &gathered[2][..]), (&b"ab"[..], &b"cd"[..]));
        assert_eq!((gathered.len(), gathered[1].as_ptr()), (3, pieces[2].as_ptr()));
    }

    #[test]
    fn formats_are_negotiated() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let cases = [
            (prometheus_2, true),
            (prometheus_3, true),
            ("application/openmetrics-text", true),
            ("APPLICATION/OpenMetrics-Text; Version=\"1.0.0\"", true),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.5", true),
            ("*/*;q=1, text/plain;q=0.2, application/openmetrics-text;q=0.3", true),
            ("*/*, application/openmetrics-text;q=0.3", false),
            ("text/plain, application/openmetrics-text;q=0.5", false),
            ("text/plain;version=0.0.4;q=0.9, text/plain;q=0.1, application/openmetrics-text;q=0.5", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=nonsense", false),
            ("application/openmetrics-text;version=2.0.0", false),
            ("application/openmetrics-text;version=0.0.1", false),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("application/json", false),
            ("*/*", false),
            ("", false),
            (",;,q=,;=", false),
        ];
        for (accept, openmetrics) in cases {
            assert_eq!(wants_openmetrics(&headers(&[(ACCEPT, accept)])), openmetrics, "{accept}");
        }
        let split = headers(&[(ACCEPT, "text/plain;q=0.1"), (ACCEPT, "application/openmetrics-text;q=0.2")]);
        assert!(wants_openmetrics(&split), "several header lines are one list");
    }

    #[test]
    fn codings_are_negotiated() {
        for (codings, gzip) in [
            ("gzip", true),
            ("GZIP", true),
            ("br, gzip;q=0.1", true),
            ("*", true),
            ("*, gzip;q=0", false),
            ("gzip;q=0", false),
            ("identity", false),
            ("gzipped", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(&headers(&[(ACCEPT_ENCODING, codings)])), gzip, "{codings}");
        }
    }
}
