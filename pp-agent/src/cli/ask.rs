//! Asks the person at the terminal.

use std::io::Write as _;

use super::CliError;

/// Writes text that is escaped already to stderr. It is an error if the person cannot see it.
pub(super) fn say(text: &str) -> Result<(), CliError> {
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(text.as_bytes()).map_err(|error| CliError::message(format!("stderr: {error}")))
}

/// Asks a question whose answer must be `yes`. The error for any other says what did not happen.
pub(super) fn confirm(question: &str, otherwise: &'static str) -> Result<(), CliError> {
    say(&format!("{question} type yes: "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|_| CliError::message(otherwise))?;
    if answer.trim() == "yes" { Ok(()) } else { Err(CliError::message(otherwise)) }
}
