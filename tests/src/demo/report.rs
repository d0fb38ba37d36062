//! What the demo prints at its end. Pure.

/// One thing that was broken.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub what: String,
    /// Before, broken, after.
    pub states: [String; 3],
    /// How long after being broken it was verified to be well, or why not.
    pub healed: String,
}

/// The rows under a head, in columns.
#[must_use]
pub fn table(rows: &[Row]) -> Vec<String> {
    let head = ["", "before", "broken", "after", "healed in"].map(str::to_owned);
    let mut cells = vec![head];
    for row in rows {
        let [before, broken, after] = row.states.clone();
        cells.push([row.what.clone(), before, broken, after, row.healed.clone()]);
    }
    let mut widths = [0; 5];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; 5]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("  {}", padded.collect::<Vec<_>>().join("   ")).trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

/// Why the remediator would do nothing now, as its `explain` says: of the first step that it leaves
/// out, or of the whole.
#[must_use]
pub fn verdict(explained: &str) -> String {
    let now =
        || explained.lines().skip_while(|line| *line != "now").skip(1).take_while(|line| !line.is_empty());
    let refusal = now().find_map(|line| Some(line.split_once("] no (")?.1.replacen("):", ":", 1)));
    refusal.unwrap_or_else(|| now().next().unwrap_or("the remediator does not say").trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let row = |what: &str, after: &str, healed: &str| Row {
            what: what.to_owned(),
            states: ["active".to_owned(), "failed".to_owned(), after.to_owned()],
            healed: healed.to_owned(),
        };
        let rows = [row("a", "active", "8 s"), row("long name", "–", "–")];
        assert_eq!(
            table(&rows),
            [
                "              before   broken   after    healed in",
                "  a           active   failed   active   8 s",
                "  long name   active   failed   –        –",
            ]
        );
    }

    #[test]
    fn the_verdict_is_the_reason_of_the_step_or_of_the_whole() {
        assert_eq!(verdict("rule\n\nnow\n  blocked (x): y\n\nbefore\n"), "blocked (x): y");
        let step =
            "now\n  seen    running\n  step    container_restart [S2] no (broken): its probe\n\nbefore\n";
        assert_eq!(verdict(step), "broken: its probe");
        assert_eq!(verdict(""), "the remediator does not say");
    }
}
