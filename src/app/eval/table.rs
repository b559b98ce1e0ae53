//! The figures of an evaluation as a table, one row per editor.

use comfy_table::{CellAlignment, Table, TableComponent, presets};

use crate::training::evaluate::{Figures, Locality, Report, Share};

/// Column heads, in two lines: what is measured, and on what.
const HEADS: [(&str, &str); 17] = [
    ("", "editor"),
    ("edits", "at once"),
    ("exact", "prompt"),
    ("match", "paraphrase"),
    ("free", "prompt"),
    ("running", "paraphrase"),
    ("CounterFact", "efficacy"),
    ("", "paraphrase"),
    ("", "neighbour"),
    ("", "score"),
    ("neighbour", "same"),
    ("", "KL"),
    ("unrelated", "same"),
    ("", "KL"),
    ("text", "perplexity"),
    ("ms/edit", "median"),
    ("", "p95"),
];

/// What a cell says where nothing was measured.
const NOTHING: &str = "-";

/// The table, and a line below it on what it was measured on.
pub(super) fn figures(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections);
    table.set_header(HEADS.map(|(above, below)| format!("{above}\n{below}")));
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
        if column.index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_row(row("no edit", 0, &report.unedited));
    for editor in &report.editors {
        for set in &editor.sets {
            table.add_row(row(&editor.name, set.together, &set.figures));
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!(
        "{}\n{} records from {} of {}; exact match teacher-forced; KL in nats; {} measured at a time",
        lines.join("\n"),
        report.data.records,
        report.data.first,
        report.model.name,
        report.threads,
    )
}

fn row(name: &str, together: usize, figures: &Figures) -> Vec<String> {
    let name = match figures.failed {
        0 => name.to_owned(),
        failed => format!("{name} ({failed} failed)"),
    };
    let scores = figures.counterfact.map_or_else(
        || [NOTHING; 4].map(str::to_owned),
        |scores| {
            let [efficacy, paraphrase, neighbour] =
                [scores.efficacy, scores.paraphrase, scores.neighbourhood].map(percent);
            [efficacy, paraphrase, neighbour, format!("{:.1}", scores.score * 100.0)]
        },
    );
    let unrelated = figures.unrelated.as_ref().map_or_else(|| [NOTHING; 2].map(str::to_owned), locality);
    let perplexity = figures.running_text.map(|text| format!("{:.2}", text.perplexity_after));
    let times = figures.milliseconds.map(|ms| [ms.median, ms.p95].map(|ms| format!("{ms:.0}")));
    [name, together.to_string()]
        .into_iter()
        .chain([figures.teacher_forced.prompt, figures.teacher_forced.paraphrase].map(percent))
        .chain([figures.free_running.prompt, figures.free_running.paraphrase].map(percent))
        .chain(scores)
        .chain(locality(&figures.neighbour))
        .chain(unrelated)
        .chain([perplexity.unwrap_or_else(|| NOTHING.to_owned())])
        .chain(times.unwrap_or_else(|| [NOTHING; 2].map(str::to_owned)))
        .collect()
}

fn percent(share: Share) -> String {
    format!("{:.1}", share.share * 100.0)
}

fn locality(figures: &Locality) -> [String; 2] {
    [percent(figures.unchanged), format!("{:.4}", figures.kl.mean)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A report on 4 records in which every share is a half; only the editor has what may be absent.
    fn report() -> Report {
        let half = json!({ "share": 0.5, "standard_error": 0.25, "count": 4 });
        let mean = json!({ "mean": 0.25, "standard_error": 0.0, "count": 4 });
        let matches = json!({ "prompt": half, "paraphrase": half });
        let locality = json!({ "unchanged": half, "kl": mean });
        let figures = json!({
            "records": 4, "failed": 0, "teacher_forced": matches, "free_running": matches, "counterfact": null,
            "neighbour": locality, "unrelated": null, "running_text": null, "milliseconds": null
        });
        let mut edited = figures.clone();
        edited["failed"] = json!(1);
        edited["counterfact"] = json!({ "efficacy": half, "paraphrase": half, "neighbourhood": half, "score": 0.5 });
        edited["unrelated"] = locality;
        edited["running_text"] = json!({
            "perplexity_before": 20.0, "perplexity_after": 21.125, "nll_change": mean, "tokens": 508
        });
        edited["milliseconds"] = json!({ "median": 40.4, "p95": 61.0 });
        let digest = crate::digest::Digest::of(b"test");
        let report = json!({
            "model": { "name": "Tiny", "digest": digest },
            "data": { "digest": digest, "first": 10, "records": 4, "running_text": null },
            "options": { "offset": 10, "records": 4, "simultaneous": [1], "unrelated": 1, "max_new_tokens": 16, "seed": 0 },
            "threads": 2,
            "unedited": figures,
            "editors": [{
                "name": "finetune", "method": "finetune", "composition": "sum", "digest": digest,
                "sets": [{ "together": 2, "groups": 2, "figures": edited, "first_hundred": null }]
            }]
        });
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn one_row_per_editor_with_its_figures() {
        let text = figures(&report());
        let lines: Vec<&str> = text.lines().collect();
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines.len(), 8, "two rules, two heads, one rule below them, two rows, one note:\n{text}");
        let unedited = "no edit 0 50.0 50.0 50.0 50.0 - - - - 50.0 0.2500 - - - - -";
        assert_eq!(cells(lines[4]), cells(unedited));
        let edited =
            "finetune (1 failed) 2 50.0 50.0 50.0 50.0 50.0 50.0 50.0 50.0 50.0 0.2500 50.0 0.2500 21.12 40 61";
        assert_eq!(cells(lines[5]), cells(edited));
        assert!(lines[7].starts_with("4 records from 10 of Tiny"), "{}", lines[7]);
    }
}
