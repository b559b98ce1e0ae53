//! `amend train`.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;

use crate::{
    cli,
    config::{TrainArgs, values::Composition},
    editor::CompositionKind,
    model::{LoadOptions, Model},
    training::{
        LocalityMix, Recipe, RunOptions,
        trainer::{self, Ending, Inputs},
    },
};

/// Trains an editor; an interrupt saves the run and stops.
pub(super) fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let running_text = match &args.files.running_text {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| path.display().to_string())?),
        None => None,
    };
    let options = LoadOptions { tail_blocks: args.recipe.tail_blocks.get(), ..LoadOptions::default() };
    let model = Model::load(&args.model.model, &options)?;
    let records = |paths: &[PathBuf]| super::records(paths, model.kind(), args.files.skip_incomplete);
    let train = records(&args.files.data)?;
    let validation = records(std::slice::from_ref(&args.files.validation))?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    ctrlc::set_handler(move || seen.store(true, Ordering::Relaxed)).context("installing the interrupt handler")?;
    let inputs = Inputs {
        model: &model,
        train: &train,
        validation: &validation,
        running_text: running_text.as_deref(),
        stop: &stop,
    };
    let summary = trainer::train(&inputs, &recipe(args), &run_options(args))?;
    let how = match summary.ending {
        Ending::Finished => "all steps taken",
        Ending::NoBetter => "validation did not get better any more",
        Ending::Stopped => "stopped; --resume goes on from here",
    };
    let best = summary.history.best().map_or_else(String::new, |best| {
        let (paraphrase, kl) = (best.mean(|set| set.paraphrase), best.mean(|set| set.neighbour_kl));
        format!("; best at step {}: paraphrase {paraphrase:.3}, neighbour KL {kl:.3}", best.step)
    });
    cli::print(&format!("{how} after {:.0} s{best}", summary.seconds))?;
    Ok(ExitCode::SUCCESS)
}

fn recipe(args: &TrainArgs) -> Recipe {
    let (recipe, schedule) = (&args.recipe, &args.schedule);
    let mix = recipe.locality_mix;
    Recipe {
        rank: recipe.rank.get(),
        composition: match recipe.composition {
            Composition::Sum => CompositionKind::Sum,
            Composition::Joint => CompositionKind::Joint,
            Composition::Gated => CompositionKind::Gated,
        },
        whitening: (recipe.whitening > 0.0).then_some(recipe.whitening),
        whitening_paraphrases: recipe.whitening_paraphrases,
        initial_step_size: recipe.initial_step_size,
        simultaneous: recipe.simultaneous.iter().map(|number| number.get()).collect(),
        edits_per_step: recipe.edits_per_step.get(),
        learning_rate: recipe.learning_rate,
        lr_scale_rate: recipe.lr_scale_rate,
        clip: recipe.clip,
        edit_weight: recipe.edit_weight,
        locality_weight: recipe.locality_weight,
        locality_mix: LocalityMix { neighbour: mix.neighbour, other: mix.other, text: mix.text },
        steps: schedule.steps,
        warmup: schedule.warmup,
        seed: schedule.seed,
    }
}

fn run_options(args: &TrainArgs) -> RunOptions {
    let schedule = &args.schedule;
    RunOptions {
        out: args.files.out.clone(),
        cache: args.files.hidden_states(),
        validate_every: schedule.validate_every.get(),
        validation_records: schedule.validation_records.get(),
        patience: schedule.patience.get(),
        resume: args.files.resume,
        from: args.files.from.clone(),
        max_minutes: schedule.max_minutes,
        threads: args.model.compute.threads(),
    }
}
