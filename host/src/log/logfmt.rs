//! Lines of `key=value` pairs, as Prometheus and its kin write their logs (go-logfmt, slog's TextHandler): `time`, `level`,
//! `source`, `msg`, and then what belongs to the event.

use std::fmt::{self, Debug, Write};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Writes an event so.
pub(super) struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut pairs = Pairs::default();
        event.record(&mut pairs);
        let about = event.metadata();
        writer.write_str("time=")?;
        SystemTime.format_time(&mut writer)?;
        writeln!(
            writer,
            " level={} source={} msg={}{}",
            about.level(),
            value(about.target()),
            value(&pairs.message),
            pairs.others
        )
    }
}

#[derive(Default)]
struct Pairs {
    message: String,
    others: String,
}

impl Pairs {
    fn add(&mut self, field: &Field, text: &str) {
        match field.name() {
            "message" => self.message.push_str(text),
            // Where a crate that uses `log` stands in its own sources.
            name if name.starts_with("log.") => {}
            // Writing to a string never fails.
            name => drop(write!(self.others, " {name}={}", value(text))),
        }
    }
}

impl Visit for Pairs {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.add(field, text);
    }

    fn record_debug(&mut self, field: &Field, something: &dyn Debug) {
        self.add(field, &format!("{something:?}"));
    }
}

/// The text as a value: in quotes, and on one line, where it would not be one word otherwise.
fn value(text: &str) -> String {
    let is_word = |letter: char| letter.is_ascii_graphic() && !matches!(letter, '"' | '=' | '\\');
    if !text.is_empty() && text.chars().all(is_word) { text.to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("unpoisoned").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn an_event_is_one_line_of_pairs_whatever_it_holds() {
        let kept = Kept::default();
        let layer = tracing_subscriber::fmt::layer().event_format(Logfmt).with_writer(kept.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(address = "127.0.0.1:1", units = 3, name = %"a b\nc=\"", "it is {}", "late");
        });
        let text = String::from_utf8(kept.0.lock().expect("unpoisoned").clone()).expect("text");
        let (time, rest) = text.split_once(' ').expect("pairs");
        assert!(time.starts_with("time=2") && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            "level=WARN source=evenkeel_host::log::logfmt::tests msg=\"it is late\" address=127.0.0.1:1 units=3 \
             name=\"a b\\nc=\\\"\"\n"
        );
    }

    #[test]
    fn nothing_that_is_empty_or_steers_a_terminal_is_a_word() {
        for (text, written) in
            [("", "\"\""), ("a=b", "\"a=b\""), ("\u{1b}[31m", "\"\\u{1b}[31m\""), ("ü", "\"ü\""), ("a", "a")]
        {
            assert_eq!(value(text), written);
        }
    }
}
