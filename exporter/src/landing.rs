//! The page for people who open the exporter in a browser: where the metrics are, and how each collector is doing.

use std::{fmt::Write, time::SystemTime};

use evenkeel_host::{
    build,
    web::{
        Response,
        page::{self, Escaped},
    },
};

use crate::scrape::Status;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse}td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}\
.bad{color:#b00020}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8ab4f8}.bad{color:#f28b82}}";

/// The page.
pub(crate) fn page(telemetry_path: &str, collectors: &[Status]) -> Response {
    page::respond("evenkeel-exporter", STYLE, &body(telemetry_path, collectors))
}

fn body(telemetry_path: &str, collectors: &[Status]) -> String {
    let mut rows = String::new();
    for status in collectors {
        let (class, words, when) = match &status.last {
            None => ("", Escaped("not asked yet"), String::new()),
            Some(last) => {
                let age = SystemTime::now().duration_since(last.at).unwrap_or_default().as_secs();
                let class = if last.success { "" } else { " class=\"bad\"" };
                (class, Escaped(&last.words), format!("{:.3} s, {age} s ago", last.took.as_secs_f64()))
            }
        };
        // Writing to a string never fails.
        let _ = writeln!(rows, "<tr><td>{}</td><td{class}>{words}</td><td>{when}</td></tr>", status.name);
    }
    let path = Escaped(telemetry_path);
    let (version, revision) = (build::VERSION, build::REVISION);
    format!(
        "<h1>evenkeel-exporter</h1>\n\
         <p>Publishes the truth about this host. Version {version}, revision {revision}.</p>\n\
         <p><a href=\"{path}\">Metrics</a> · <a href=\"/-/healthy\">Healthy</a> · <a href=\"/-/ready\">Ready</a></p>\n\
         <h2>Collectors</h2>\n<table>\n<tr><th>Collector</th><th>Last look</th><th>Took</th></tr>\n{rows}</table>\n"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::scrape::Last;

    #[test]
    fn what_sources_say_stays_text() {
        let words = "<script>alert(\"x\")</script> & 'more'".to_owned();
        let last = Last { success: false, words, took: Duration::from_millis(12), at: SystemTime::now() };
        let page = body(
            "/metrics",
            &[Status { name: "docker", last: Some(last) }, Status { name: "redis", last: None }],
        );
        assert!(page.contains(
            "<td>docker</td><td class=\"bad\">&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &#39;more&#39;</td>\
             <td>0.012 s, 0 s ago</td>"
        ));
        assert!(page.contains("<tr><td>redis</td><td>not asked yet</td><td></td></tr>"));
        assert!(page.contains("<a href=\"/metrics\">"));
        assert!(!page.contains("<script"));
    }
}
