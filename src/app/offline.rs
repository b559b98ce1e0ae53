//! The commands that do a server's work once and end: `verify`, `generate`, `edits revert`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use candle_core::Device;

use super::{
    interrupt,
    log::{Log, Purpose},
    open,
};
use crate::{
    cli::{self, GenerateArgs, RevertArgs, VerifyArgs, client::Client, history},
    config::{DatabaseArgs, EditorArgs, ModelArgs, Place},
    edit_log::{LogError, open_read_only, without_password},
    generation::{GenerateConfig, GenerateHandle, GenerateRequest, GenerateResponse, ModelDecoder},
    telemetry::Metrics,
    writer::{self, Answer, Foundation, Role, SetChange, Started, VersionReport, WriterConfig},
};

/// How long a generation that is told to end may take to do so; it has already answered.
const END: Duration = Duration::from_secs(5);

/// `amend verify`: replays the log without changing it.
pub(super) async fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    interrupt::ends_with(|| "the log was not checked to its end; nothing was changed".to_owned())?;
    let loaded = open::load(&args.model.model, &args.editor.editor, Device::Cpu)?;
    let log = open_read_only(&args.database.database).await?;
    let foundation = Foundation::of(&loaded.model, loaded.editor.as_ref());
    let report = writer::verify(Arc::clone(&log), foundation, |_, _| {}).await?;
    let mut said = format!(
        "clean: {} entries, {} versions, {} edits active; checked in {:.2} s",
        report.entries,
        report.versions,
        report.active,
        report.elapsed.as_secs_f64()
    );
    if report.dropped > 0 {
        said += &format!(
            "\ncompactions dropped the changes of {} edits; the sets of all versions were checked, the weights of all but the \
             {} that contain one of these edits",
            report.dropped, report.unmade
        );
        said.extend(log.dropped().await?.iter().map(|id| format!("\ndropped: edit {id}")));
    }
    cli::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// `amend generate`.
pub(super) async fn generate(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    interrupt::ends_with(|| "nothing was generated to the end, and nothing was changed".to_owned())?;
    let request = args.text.request();
    let response = match args.place.clone().place()? {
        Place::Server { address, key } => Client::new(&address, key.as_deref())?.generate(&request).await?,
        Place::Here { model, editor, database } => generate_here(&model, &editor, &database, request).await?,
    };
    cli::print(&args.text.render(&response)?)?;
    Ok(ExitCode::SUCCESS)
}

async fn generate_here(
    model: &ModelArgs,
    editor: &EditorArgs,
    database: &DatabaseArgs,
    request: GenerateRequest,
) -> anyhow::Result<GenerateResponse> {
    let here = Here::open(model, editor, database, Purpose::Read).await?;
    let decoder = Arc::new(ModelDecoder::new(here.model, here.started.versions));
    let engine = GenerateHandle::start(decoder, GenerateConfig::default(), Metrics::new())?;
    let response = engine.generate(request).await;
    engine.drain(END).await;
    here.started.task.stop(END).await;
    here.log.close().await;
    Ok(response?)
}

/// `amend edits revert`.
pub(super) async fn revert(args: &RevertArgs) -> anyhow::Result<ExitCode> {
    let id = args.id;
    interrupt::ends_with(move || format!("`amend edits show {id}` says whether the edit was taken back before"))?;
    let report = match args.place.clone().place()? {
        Place::Server { address, key } => Client::new(&address, key.as_deref())?.revert(args.id, &args.actor).await?,
        Place::Here { model, editor, database } => revert_here(&model, &editor, &database, args).await?,
    };
    cli::print(&history::reverted(args.id, &report))?;
    Ok(ExitCode::SUCCESS)
}

async fn revert_here(
    model: &ModelArgs,
    editor: &EditorArgs,
    database: &DatabaseArgs,
    args: &RevertArgs,
) -> anyhow::Result<VersionReport> {
    let here = Here::open(model, editor, database, Purpose::Write).await?;
    let answer = here.started.handle.change(SetChange::TakeBack(args.id), args.actor.clone(), None, None).await;
    here.started.task.stop(END).await;
    here.log.close().await;
    match answer? {
        Answer::Fresh(report) => Ok(report),
        Answer::Recorded(row) => anyhow::bail!("a request without a key was answered from key {:?}", row.key),
    }
}

/// The set in this process. Refused while another process has the database's place to write: of a file always, of a shared
/// log if the set is to be changed.
struct Here {
    model: Arc<crate::model::Model>,
    log: Log,
    started: Started,
}

impl Here {
    async fn open(
        model: &ModelArgs,
        editor: &EditorArgs,
        database: &DatabaseArgs,
        purpose: Purpose,
    ) -> anyhow::Result<Self> {
        must_be_in_use(&database.database).await?;
        let log = Log::open(&database.database, purpose).await?;
        let loaded = open::load(&model.model, &editor.editor, Device::Cpu)?;
        let model = Arc::clone(&loaded.model);
        let (shared, place) = (Arc::clone(&log.log), log.place(None));
        let started =
            writer::start(loaded.model, loaded.editor, shared, place, WriterConfig::default(), Metrics::new()).await?;
        if purpose == Purpose::Write && started.replica.status().role != Role::Writer {
            return Err(LogError::Locked { holder: log.holder().await? }.into());
        }
        Ok(Self { model, log, started })
    }
}

/// Refuses a database that is not there or that no server has used yet: to open it for writing would create it and pin
/// this model and editor to it for good, and its path may just be mistyped.
async fn must_be_in_use(database: &str) -> anyhow::Result<()> {
    let found = open_read_only(database).await.context("`amend serve` makes a database; this needs one")?;
    let head = found.head().await;
    found.close().await;
    head.with_context(|| format!("{} has not been used by `amend serve` yet", without_password(database)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_is_not_there_is_named_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("typo/amend.db");
        let error = must_be_in_use(&format!("sqlite://{}", path.display())).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(&format!("there is no database at {}", path.display())), "{error}");
        assert!(!folder.path().join("typo").exists());
    }

    #[tokio::test]
    async fn a_database_that_nobody_has_used_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/amend.db", folder.path().display());
        crate::edit_log::sqlite::SqliteLog::open(&url).await.unwrap().close().await;
        let error = must_be_in_use(&url).await.unwrap_err();
        assert!(format!("{error:#}").contains("no model is pinned"), "{error:#}");
    }
}
