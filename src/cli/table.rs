//! What people read: tables of edits and versions, and one edit in full.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use crate::{
    digest::Digest,
    edit_log::{EditRow, EditStatus, VersionKind, VersionRow},
    writer::{EditReport, HoldingReport, TargetReport},
};

/// How many characters of a digest a table shows.
const SHORT: usize = 12;

/// Edits, one a line.
pub fn edits(rows: &[EditRow]) -> String {
    let mut table = new(&["id", "received", "status", "version", "actor", "prompt", "target"]);
    right(&mut table, 3);
    for row in rows {
        table.add_row([
            row.id.to_string(),
            time(row.received_at),
            status(row.status).to_owned(),
            row.version.map(|version| version.to_string()).unwrap_or_default(),
            row.actor.clone(),
            row.prompt.clone(),
            row.target.clone(),
        ]);
    }
    table.to_string()
}

/// Versions, one a line.
pub fn versions(rows: &[VersionRow]) -> String {
    let mut table = new(&["version", "created", "kind", "active", "actor", "digest", "set"]);
    right(&mut table, 0);
    right(&mut table, 3);
    for row in rows {
        table.add_row([
            row.number.to_string(),
            time(row.created_at),
            kind(row.kind).to_owned(),
            row.active.to_string(),
            row.actor.clone(),
            short(row.digest),
            short(row.set_digest),
        ]);
    }
    table.to_string()
}

/// One edit: its row, and the figures of its report where it has them.
pub fn edit(row: &EditRow) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut line = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    line("id", row.id.to_string());
    line("status", status(row.status).to_owned());
    if let Some(reason) = &row.reason {
        line("reason", reason.clone());
    }
    if let Some(version) = row.version {
        line("version", version.to_string());
    }
    if let Some(id) = row.superseded_by {
        line("superseded by", id.to_string());
    }
    line("received", time(row.received_at));
    line("actor", row.actor.clone());
    line("prompt", row.prompt.clone());
    line("target", row.target.clone());
    if let Some(contribution) = row.contribution {
        line("contribution", contribution.to_string());
    }
    match serde_json::from_value::<EditReport>(row.report.clone()) {
        Ok(report) => format!("{}\n\n{}", trimmed(&table), figures(&report)),
        // A failed edit, or one that a later version of the program wrote, has figures in another shape.
        Err(_) if is_empty(&row.report) => trimmed(&table),
        Err(_) => format!("{}\n\n{:#}", trimmed(&table), row.report),
    }
}

fn figures(report: &EditReport) -> String {
    let mut targets = new(&["asked", "probability before", "after", "greedy before", "after"]);
    for index in 1..5 {
        right(&mut targets, index);
    }
    for TargetReport { text, before, after } in std::iter::once(&report.prompt).chain(&report.paraphrases) {
        targets.add_row([
            text.clone(),
            format!("{:.4}", before.probability),
            format!("{:.4}", after.probability),
            yes(before.greedy).to_owned(),
            yes(after.greedy).to_owned(),
        ]);
    }
    let mut parts = vec![targets.to_string()];
    if !report.locality.is_empty() {
        let mut table = new(&["locality", "KL (nats)", "greedy unchanged"]);
        for probe in &report.locality {
            table.add_row([probe.prompt.clone(), format!("{:.5}", probe.kl), yes(probe.greedy_unchanged).to_owned()]);
        }
        parts.push(table.to_string());
    }
    if !report.conflicts.is_empty() {
        let mut table = new(&["conflicts with", "prompt", "target", "reason", "similarity"]);
        for conflict in &report.conflicts {
            table.add_row([
                conflict.edit.to_string(),
                conflict.prompt.clone(),
                conflict.target.clone(),
                conflict.reason.as_str().to_owned(),
                conflict.similarity.map(|similarity| format!("{similarity:.3}")).unwrap_or_default(),
            ]);
        }
        parts.push(table.to_string());
    }
    parts.extend(report.holding.as_ref().map(holding));
    if !report.delta.is_empty() {
        let mut table = new(&["matrix", "delta norm", "rank", "gradient nuclear norm", "effective rank"]);
        for delta in &report.delta {
            let gradient = report.gradient.iter().find(|gradient| gradient.matrix == delta.matrix);
            let figure = |figure: Option<f32>| figure.map(|figure| format!("{figure:.5}")).unwrap_or_default();
            table.add_row([
                delta.matrix.clone(),
                format!("{:.5}", delta.norm),
                delta.rank.to_string(),
                figure(gradient.map(|gradient| gradient.nuclear_norm)),
                figure(gradient.map(|gradient| gradient.effective_rank)),
            ]);
        }
        parts.push(table.to_string());
    }
    let ms = &report.phases_ms;
    let reached = |name: &str, ms: Option<f64>| ms.map(|ms| format!(", {name} {ms:.1}")).unwrap_or_default();
    parts.push(format!(
        "milliseconds: queue {:.1}, capture {:.1}, editor {:.1}, guard {:.1}{}{}, total {:.1}",
        ms.queue,
        ms.capture,
        ms.editor,
        ms.guard,
        reached("commit", ms.commit),
        reached("publish", ms.publish),
        ms.total
    ));
    parts.join("\n\n")
}

/// What an edit did to others.
fn holding(report: &HoldingReport) -> String {
    let HoldingReport { edits_checked, canaries_checked, broken_edits, broken_canaries } = report;
    let counts = format!(
        "breaks: {} of {edits_checked} active edits scored again, {} of {canaries_checked} canaries",
        broken_edits.len(),
        broken_canaries.len()
    );
    if broken_edits.is_empty() && broken_canaries.is_empty() {
        return counts;
    }
    let mut table = new(&["breaks", "prompt", "probability before", "after"]);
    for broken in broken_edits {
        let figures = [broken.before, broken.after].map(|figures| format!("{:.4}", figures.probability));
        table.add_row([&[broken.edit.to_string(), broken.prompt.clone()], &figures[..]].concat());
    }
    for broken in broken_canaries {
        let figures = [broken.before, broken.after]
            .map(|figures| figures.map(|figures| format!("{:.4}", figures.probability)).unwrap_or_default());
        table.add_row([&["canary".to_owned(), broken.prompt.clone()], &figures[..]].concat());
    }
    format!("{counts}\n{table}")
}

fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

fn right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn is_empty(report: &Value) -> bool {
    report.is_null() || report.as_object().is_some_and(serde_json::Map::is_empty)
}

fn time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn short(digest: Digest) -> String {
    digest.to_string().chars().take(SHORT).collect()
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn status(status: EditStatus) -> &'static str {
    match status {
        EditStatus::Applied => "applied",
        EditStatus::TakenBack => "taken back",
        EditStatus::Superseded => "superseded",
        EditStatus::Rejected => "rejected",
        EditStatus::Failed => "failed",
    }
}

fn kind(kind: VersionKind) -> &'static str {
    match kind {
        VersionKind::Base => "base",
        VersionKind::Edit => "edit",
        VersionKind::TakeBack => "take back",
        VersionKind::Rollback => "rollback",
    }
}
