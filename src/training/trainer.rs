//! The training loop.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    TrainingError, batch,
    beginning::Beginning,
    cache::HiddenStates,
    compose,
    corpus::{Corpus, check_running_text},
    dataset::Dataset,
    draw::Draw,
    factored::CutSides,
    factors::FactorCache,
    gating,
    optimizer::{Adam, Gradients},
    options::{Recipe, RunOptions},
    parallel::Workers,
    plot,
    run_state::{History, Origin, RunState, STATE, StepFigures},
    trainable::Trainable,
    validate::{Validation, Validator},
    whitening::{self, Shares, Sources},
};
use crate::{
    editor::{CompositionKind, folder::MANIFEST},
    model::{Kind, Model},
};

/// Windows of running text that a run draws from.
const WINDOWS: usize = 4000;
/// Edits of a part of a batch: what one thread does at a time. Fixed, so that the sums do not depend on the number of
/// threads.
const PART: usize = 8;
/// Steps averaged in the history and the progress bar.
const AVERAGE: u64 = 10;
/// Records and windows of running text whose inputs the whitening is made of, and records whose wordings are compared.
const WHITENING_TEXTS: usize = 1500;
/// Windows of running text at whose positions a gate learns to be silent.
const GATE_WINDOWS: usize = 600;

/// What a run needs from outside.
pub struct Inputs<'a> {
    pub model: &'a Model,
    pub train: &'a Dataset,
    pub validation: &'a Dataset,
    pub running_text: Option<&'a str>,
    /// Set from outside to make the run save and stop.
    pub stop: &'a AtomicBool,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken.
    Finished,
    /// Validation did not get better any more.
    NoBetter,
    /// It was interrupted, or its time was up; it can be resumed.
    Stopped,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Summary {
    pub ending: Ending,
    pub history: History,
    /// Seconds of training, over all sessions of the run.
    pub seconds: f64,
}

/// Trains an editor; checkpoints, the best editor and the plot go to `options.out`.
pub fn train(inputs: &Inputs<'_>, recipe: &Recipe, options: &RunOptions) -> Result<Summary, TrainingError> {
    Trainer::open(inputs, recipe, options)?.run()
}

struct Trainer<'a> {
    inputs: &'a Inputs<'a>,
    recipe: &'a Recipe,
    origin: Origin,
    options: &'a RunOptions,
    states: Arc<HiddenStates>,
    factors: FactorCache<'a>,
    workers: Workers,
    draw: Draw,
    /// Records to validate on, and numbers of edits that are active together.
    validation: (Vec<usize>, Vec<usize>),
    trainable: Trainable,
    adam: Adam,
    run: RunState,
    bar: ProgressBar,
    started: Instant,
}

impl<'a> Trainer<'a> {
    fn open(inputs: &'a Inputs<'a>, recipe: &'a Recipe, options: &'a RunOptions) -> Result<Self, TrainingError> {
        let (train, validation) = (&inputs.train.records, &inputs.validation.records);
        if train.is_empty() || validation.is_empty() {
            return Err(TrainingError::Refused("training needs records, and others to validate on".to_owned()));
        }
        check_running_text(inputs.model.kind(), inputs.running_text)?;
        if recipe.composition == CompositionKind::Gated && inputs.model.kind() != Kind::Causal {
            let why = format!("a gate is for models that continue texts, and this is {}", inputs.model.kind());
            return Err(TrainingError::Refused(why));
        }
        if !options.resume {
            refuse_to_overwrite(&options.out)?;
        }
        let from = Beginning::read(&options.from, inputs.model.digest())?;
        if recipe.steps == 0 && from.is_none() {
            return Err(TrainingError::Refused(
                "0 steps write the editor that a run begins with, and this one begins with none".to_owned(),
            ));
        }
        let origin = Origin::of(inputs, from.as_ref());
        let records: Vec<_> = train.iter().chain(validation).cloned().collect();
        let tokenizer = inputs.model.tokenizer();
        let corpus = Corpus::new(tokenizer, &records, inputs.running_text, WINDOWS, recipe.seed)?;
        let draw = Draw::new(recipe.clone(), train.len(), &corpus)?;
        let bar = progress_bar();
        let workers = Workers::new(options.threads)?;
        let still = still_texts(train.len(), &corpus);
        let windows: Vec<usize> = (0..corpus.windows().min(GATE_WINDOWS)).map(|window| corpus.window(window)).collect();
        let states = Arc::new(HiddenStates::open(inputs.model, corpus.texts, &options.cache, &workers, &bar)?);
        let at_answers = recipe.composition != CompositionKind::Sum;
        let factors = FactorCache::new(inputs.model, Arc::clone(&states), at_answers);
        let count = options.validation_records.min(validation.len());
        let mut trainable = Trainable::new(inputs.model.editable(), recipe)?;
        let begun = options.resume || from.is_some();
        if let Some(beginning) = &from {
            trainable.begin_with(&beginning.tensors)?;
        }
        if let Some(ridge) = recipe.whitening.filter(|_| !begun) {
            let shares = Shares { ridge, paraphrases: recipe.whitening_paraphrases };
            let compared: Vec<usize> = (0..train.len().min(WHITENING_TEXTS)).collect();
            let sources = Sources { still: &still, records: &compared };
            trainable.whiten(whitening::whitening(inputs.model, &states, &sources, shares, &workers)?);
        }
        if recipe.composition == CompositionKind::Gated && !options.resume && trainable.gate().is_none() {
            let records: Vec<usize> = (0..train.len()).collect();
            let model = inputs.model;
            let sources = gating::Sources {
                model,
                states: &states,
                factors: &factors,
                records: &records,
                windows: &windows,
                workers: &workers,
            };
            trainable.stand_behind(gating::train(&sources, recipe.seed)?);
        }
        let mut adam = Adam::new(trainable.variables(recipe.learning_rate, recipe.lr_scale_rate));
        let run = match options.resume {
            true => RunState::load(&options.out, (recipe, &origin), &mut trainable, &mut adam)?,
            false => RunState::default(),
        };
        Ok(Self {
            validation: ((train.len()..train.len() + count).collect(), validated_together(recipe, count)),
            inputs,
            recipe,
            origin,
            options,
            states,
            factors,
            workers,
            draw,
            trainable,
            adam,
            run,
            bar,
            started: Instant::now(),
        })
    }

    fn run(mut self) -> Result<Summary, TrainingError> {
        self.bar.reset();
        self.bar.set_length(self.recipe.steps);
        self.bar.set_position(self.run.step);
        self.bar.reset_eta();
        let before = self.run.seconds;
        if self.origin.from.is_some() && self.run.step == 0 && self.run.history.validations.is_empty() {
            // What a run begins with may be the best that it has.
            self.validate()?;
        }
        let ending = loop {
            self.run.seconds = before + self.started.elapsed().as_secs_f64();
            if self.run.step >= self.recipe.steps {
                break Ending::Finished;
            }
            if self.inputs.stop.load(Ordering::Relaxed) || self.out_of_time() {
                break Ending::Stopped;
            }
            self.step()?;
            if self.run.step.is_multiple_of(self.options.validate_every) || self.run.step == self.recipe.steps {
                self.validate()?;
                if self.run.history.since_best() >= self.options.patience {
                    break Ending::NoBetter;
                }
            }
        };
        self.save()?;
        self.bar.finish_and_clear();
        Ok(Summary { ending, history: self.run.history, seconds: self.run.seconds })
    }

    fn out_of_time(&self) -> bool {
        self.options.max_minutes.is_some_and(|minutes| self.started.elapsed().as_secs_f64() > minutes * 60.0)
    }

    fn step(&mut self) -> Result<(), TrainingError> {
        let (model, states, workers) = (self.inputs.model, &self.states, &self.workers);
        let plan = self.draw.batch(self.run.step);
        let (records, sets) = plan.edited();
        let captured = self.factors.of(&records, workers)?;
        self.trainable.observe(&captured)?;
        let mend = self.trainable.mend()?;
        // The gate knows the records by heart, and would keep from an edit what its neighbours have to teach it: edits are trained
        // without it.
        let sides = |mend| Ok::<_, TrainingError>(compose::sides(mend, &captured, &sets)?.ungated());
        let sides = workers.run(|| Ok::<_, TrainingError>(CutSides::new(sides(&mend)?)?))?;
        let edits = plan.edits.len();
        let passed = workers.map(&plan.parts(PART), |part| {
            let outcome = batch::run(model, states, &sides.of_sets(&part.range())?, part, self.recipe.weights())?;
            let share = (outcome.loss.clone() * (part.edits.len() as f64 / edits as f64))?;
            Ok::<_, TrainingError>((sides.gradients(&share.backward()?), outcome))
        });
        let (arrived, outcomes): (Vec<_>, Vec<_>) =
            passed.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let gradients = workers.run(|| match sides.resume(&arrived)? {
            Some(rest) => self.adam.gradients(&rest.backward()?),
            None => Ok(Gradients::default()),
        })?;
        let figures = StepFigures::new(self.run.step + 1, &outcomes)?;
        if !figures.loss.is_finite() {
            return Err(TrainingError::Diverged { step: self.run.step });
        }
        let norm = self.adam.update(&gradients, self.recipe.schedule(self.run.step), self.recipe.clip)?;
        if !norm.is_finite() {
            return Err(TrainingError::Diverged { step: self.run.step });
        }
        self.run.step += 1;
        self.record(figures);
        Ok(())
    }

    fn record(&mut self, figures: StepFigures) {
        self.run.pending.push(figures);
        self.bar.inc(1);
        if self.run.step.is_multiple_of(AVERAGE) {
            let mean = StepFigures::mean(&std::mem::take(&mut self.run.pending));
            let edits = self.recipe.edits_per_step as f64 * self.bar.per_sec();
            self.bar.set_message(format!(
                "ES {:.2} KL {:.3} loss {:.3} {edits:.1} edits/s",
                mean.paraphrase, mean.kl, mean.loss
            ));
            self.run.history.steps.push(mean);
        }
    }

    fn validate(&mut self) -> Result<(), TrainingError> {
        let mend = self.trainable.mend()?;
        let (records, together) = &self.validation;
        let validator = Validator {
            model: self.inputs.model,
            states: &self.states,
            factors: &self.factors,
            records,
            together,
            weights: self.recipe.weights(),
            workers: &self.workers,
        };
        let figures = validator.validate(&mend, self.run.step)?;
        let text = describe(&figures);
        let better = self.run.history.push(figures);
        self.bar.suspend(|| println!("{text}{}", if better { "  best" } else { "" }));
        if better {
            self.run.export(&mend, self.inputs, (self.recipe, &self.origin), &self.options.out)?;
        }
        self.save()
    }

    fn save(&self) -> Result<(), TrainingError> {
        self.run.save(&self.options.out, (self.recipe, &self.origin), &self.trainable, &self.adam)?;
        plot::write(&self.run.history, &self.options.out.join("loss.svg"))
    }
}

/// A finished or stopped run is worth hours: it is never overwritten because a flag was forgotten.
fn refuse_to_overwrite(out: &Path) -> Result<(), TrainingError> {
    let held = [STATE, MANIFEST].into_iter().find(|name| out.join(name).exists());
    match held {
        Some(name) => Err(TrainingError::Refused(format!(
            "{} has a {name} already; go on with it by --resume, or name another --out",
            out.display()
        ))),
        None => Ok(()),
    }
}

/// Texts that no edit is about: locality questions and windows of running text.
fn still_texts(records: usize, corpus: &Corpus) -> Vec<usize> {
    let questions = (0..records.min(WHITENING_TEXTS)).map(Corpus::locality);
    let windows = (0..corpus.windows().min(WHITENING_TEXTS)).map(|window| corpus.window(window));
    questions.chain(windows).collect()
}

/// The recipe's numbers of edits that are active together, as far as there are records.
fn validated_together(recipe: &Recipe, records: usize) -> Vec<usize> {
    let mut together: Vec<usize> = recipe.simultaneous.iter().map(|&number| number.min(records)).collect();
    together.sort_unstable();
    together.dedup();
    together
}

fn describe(figures: &Validation) -> String {
    let sets = figures.sets.iter().map(|set| {
        format!(
            "\n  {:>5} together: prompt {:.3}  paraphrase {:.3}  neighbour KL {:.3} unchanged {:.3}  other KL {:.3} \
             unchanged {:.3}  loss {:.4}",
            set.together,
            set.prompt,
            set.paraphrase,
            set.neighbour_kl,
            set.neighbour_unchanged,
            set.other_kl,
            set.other_unchanged,
            set.loss
        )
    });
    format!("step {:>6}  loss {:.4}{}", figures.step, figures.loss, sets.collect::<String>())
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ETA {eta}")
        .expect("the template is a constant that indicatif accepts");
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
