//! docs/cli.md: what `--help` says of both programs and of each of their commands.

use clap::Command;
use evenkeel_exporter::collectors;

pub(crate) fn page() -> String {
    let mut body = String::from(
        "Manual pages and completions come from the programs themselves: `generate man` and `generate completions`.\n",
    );
    for program in
        [evenkeel_exporter::cli::command(&collectors::names()), evenkeel_remediator::cli::command()]
    {
        let mut program = program.disable_help_subcommand(true);
        program.build();
        help(&mut program, &mut body);
    }
    crate::page("Command line", "the flags of both programs", &body)
}

/// A section for the command and those below it.
fn help(command: &mut Command, body: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let level = "#".repeat(1 + name.split(' ').count().min(3));
    // As in a pipe: no colours, and no line is broken by the width of a terminal.
    let text = command.clone().term_width(110).render_long_help().to_string();
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
    body.push_str(&format!("\n{level} {name}\n\n```text\n{}\n```\n", lines.join("\n")));
    for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set()) {
        help(below, body);
    }
}
