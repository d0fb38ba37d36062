//! What the command lines of both programs have in common: their manual pages and their completions, made from their own
//! flags, so that they cannot say anything else.

use std::{fs, path::Path};

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The manual page of the program (roff), which names its commands.
pub fn manual(command: Command) -> String {
    page(complete(command))
}

/// The manual pages of the program and of each of its commands, with the names of their files (`evenkeel-exporter-check.1`).
pub fn manuals(command: Command) -> Vec<(String, String)> {
    let command = complete(command);
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let all: Vec<Command> = commands.chain([command.clone()]).collect();
    let file = |command: &Command| format!("{}.1", command.get_display_name().unwrap_or(command.get_name()));
    all.into_iter().map(|command| (file(&command), page(command))).collect()
}

/// Writes them into a folder, which is made where it is not there.
///
/// # Errors
/// When that cannot be written.
pub fn write_manuals(command: Command, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, page) in manuals(command) {
        let path = dir.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What a shell needs to complete the flags and commands.
pub fn completions(mut command: Command, shell: Shell) -> String {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// With the flags that all commands have, and without the command that only helps.
fn complete(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}

fn page(command: Command) -> String {
    let mut text = Vec::new();
    // Writing to memory never fails.
    let _ = Man::new(command).render(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn program() -> Command {
        let flag =
            Arg::new("loud").long("loud").help("Says it twice").action(ArgAction::SetTrue).global(true);
        Command::new("keel")
            .version("1")
            .about("Keeps even")
            .arg(flag)
            .after_help("Exit codes: 0 done.")
            .subcommand(Command::new("check").about("Looks"))
            .subcommand(Command::new("helper").hide(true))
    }

    #[test]
    fn each_command_has_a_page_and_those_that_are_hidden_have_none() {
        let pages = manuals(program());
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["keel-check.1", "keel.1"]);
        for (name, page) in &pages {
            assert!(page.contains(".TH") && page.contains("\\-\\-loud"), "{name}: {page}");
        }
        assert!(pages[1].1.contains("Exit codes: 0 done.") && !pages[1].1.contains("helper"));
        assert_eq!(manual(program()), pages[1].1);
    }

    #[test]
    fn pages_are_written_into_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("man");
        write_manuals(program(), &dir).expect("written");
        assert!(fs::read_to_string(dir.join("keel-check.1")).expect("a page").contains("Looks"));
        assert!(write_manuals(program(), Path::new("/proc/no")).is_err());
    }

    #[test]
    fn shells_are_told_the_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completions(program(), shell);
            assert!(
                text.contains("keel") && text.contains("loud") && text.contains("check"),
                "{shell}: {text}"
            );
        }
    }
}
