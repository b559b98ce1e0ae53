//! `amend eval`.

mod table;

use std::{num::NonZeroUsize, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{interrupt, open};
use crate::{
    cli,
    config::{EvalArgs, EvalWhat},
    editor::{
        self, Manifest,
        finetune::{self, Finetune, FinetuneOptions},
        ultraedit::{self, UltraEdit},
    },
    files::write_whole,
    model::{LoadOptions, Model, Passage, capture},
    training::{
        dataset::Dataset,
        evaluate::{self, Candidate, EvaluateOptions, Inputs, Report},
    },
};

/// Records whose locality questions fine-tuning with a divergence keeps still. They are none of those that are measured.
const STILL_RECORDS: usize = 8;
/// Records whose edits UltraEdit's statistics are of; none of those that are measured either.
const WARM_UP_RECORDS: usize = 100;

/// Measures editors side by side.
pub(super) fn run(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    let (what, bar) = (&args.what, progress_bar());
    let seen = bar.clone();
    interrupt::ends_with(move || {
        let (done, all) = (seen.position(), seen.length().unwrap_or_default());
        seen.finish_and_clear();
        // How many there are is known when the model and the data are loaded.
        let measured = if all == 0 {
            "no record was measured".to_owned()
        } else {
            format!("{done} of {all} records were measured")
        };
        format!("{measured}; no figures were written")
    })?;
    let options = options(what);
    let running_text = match &what.running_text {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| path.display().to_string())?),
        None => None,
    };
    let tail_blocks = tail_blocks(&what.editors)?.unwrap_or(LoadOptions::default().tail_blocks);
    let device = open::device(args.device.device)?;
    let model = Model::load(&args.model.model, &LoadOptions { tail_blocks, device })?;
    let data = super::records(&what.data, model.kind(), what.skip_incomplete)?;
    let window = evaluate::window(data.records.len(), &options)?;
    bar.set_length(window.len() as u64);
    let asked = |method: &str| what.editors.iter().any(|name| name == method);
    let wanted = match (asked(ultraedit::METHOD), asked(finetune::METHOD_KL)) {
        (true, _) => WARM_UP_RECORDS,
        (false, true) => STILL_RECORDS,
        (false, false) => 0,
    };
    let reserved = evaluate::reserve(data.records.len(), &window, wanted, options.seed)
        .context("finetune-kl and ultraedit see records of their own")?;
    let candidates = what
        .editors
        .iter()
        .map(|name| candidate(name, what, &model, &data, &reserved))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let inputs = Inputs {
        model: &model,
        data: &data,
        running_text: running_text.as_deref(),
        candidates: &candidates,
        reserved: &reserved,
        threads: args.model.compute.threads(),
        bar: &bar,
    };
    let report = evaluate::evaluate(&inputs, &options)?;
    publish(&report, what.json.as_deref())?;
    if let Some(path) = &what.plot {
        evaluate::plot(&report, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(what: &EvalWhat) -> EvaluateOptions {
    EvaluateOptions {
        offset: what.offset,
        records: what.records.get(),
        simultaneous: what.simultaneous.iter().map(|number| number.get()).collect(),
        measured: what.measured.map(NonZeroUsize::get),
        unrelated: what.unrelated,
        max_new_tokens: what.max_new_tokens.get(),
        seed: what.seed,
    }
}

fn is_method(name: &str) -> bool {
    [finetune::METHOD, finetune::METHOD_KL, ultraedit::METHOD].contains(&name)
}

/// How many blocks the folders among `names` edit, all the same number; none without a folder.
fn tail_blocks(names: &[String]) -> anyhow::Result<Option<usize>> {
    let mut first: Option<(&str, usize)> = None;
    for name in names.iter().filter(|name| !is_method(name)) {
        let blocks = Manifest::read(Path::new(name))?.tail_blocks;
        let (other, same) = *first.get_or_insert((name, blocks));
        ensure!(blocks == same, "{name} edits the last {blocks} blocks, {other} the last {same}; measure them apart");
    }
    Ok(first.map(|(_, blocks)| blocks))
}

fn candidate(
    name: &str,
    what: &EvalWhat,
    model: &Model,
    data: &Dataset,
    reserved: &[usize],
) -> anyhow::Result<Candidate> {
    let options = FinetuneOptions::default();
    let (editor, options): (Box<dyn editor::Editor>, _) = match name {
        finetune::METHOD => {
            let said = json!({ "learning_rate": options.learning_rate, "max_steps": options.max_steps });
            (Box::new(Finetune::new(options)), said)
        }
        finetune::METHOD_KL => {
            let reserved = &reserved[..STILL_RECORDS];
            let still = reserved.iter().map(|&place| &data.records[place]);
            let passages = still
                .map(|record| model.tokenizer().encode_passage(&record.locality_prompt, &record.locality_target))
                .collect::<Result<Vec<Passage>, _>>()?;
            let mut said = json!(options);
            said["still_records"] = json!(reserved);
            (Box::new(Finetune::with_kl(options, model, &passages)?), said)
        }
        ultraedit::METHOD => {
            let edits = reserved.iter().map(|&place| &data.records[place]);
            let passages = edits
                .map(|record| model.tokenizer().encode_passage(&record.prompt, &record.target))
                .collect::<Result<Vec<Passage>, _>>()?;
            let warm_up = capture::capture(model, &capture::read(model, &passages)?)?;
            let said = json!({ "rate": what.ultraedit_rate, "warm_up_records": reserved });
            (Box::new(UltraEdit::new(model, &warm_up, what.ultraedit_rate)?), said)
        }
        folder => (editor::load(Path::new(folder), model)?.1, serde_json::Value::Null),
    };
    Ok(Candidate { name: name.to_owned(), editor, options })
}

/// The table, or JSON alone where standard output takes it.
fn publish(report: &Report, json: Option<&Path>) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    if json == Some(Path::new("-")) {
        return Ok(cli::print(&text)?);
    }
    cli::print(&table::figures(report))?;
    if let Some(path) = json {
        write_whole(path, format!("{text}\n").as_bytes()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} records {elapsed} ETA {eta}")
        .expect("the template is a constant that indicatif accepts");
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
