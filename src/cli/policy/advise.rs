//! The command `policy advise`: prints the fewest rules that reach an aim.

use std::path::PathBuf;

use clap::Args;

use super::inputs;
use crate::cli::failed;
use crate::cli::print;
use crate::cost::Advice;
use crate::cost::Survey;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The part of the bytes that the rules are to save, such as 60%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    cut: f64,
    /// The events, as `policy cost` takes them. `-` is standard input
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

/// Parses a part in percent; the sign may be left out.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
    let number = number.filter(|percent| *percent > 0.0 && *percent <= 100.0);
    number.ok_or_else(|| "allowed: a part such as 60%, above 0% and up to 100%".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let mut survey = Survey::default();
    let read = inputs::files(&arguments.inputs, &mut |lines| survey.add(lines))?;
    if read.stopped || survey.total.events == 0 {
        return read.tell(survey.total);
    }
    let advice = Advice::new(&survey, arguments.cut);
    print(&advice.page)?;
    read.tell(survey.total)?;
    match advice.is_reached {
        true => Ok(()),
        false => Err(failed(format_args!(
            "the aim of {} % is not reached: above the floor, {:.1} % can be saved",
            arguments.cut,
            advice.saves.percent_of(survey.total),
        ))),
    }
}
