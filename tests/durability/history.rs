//! What was acknowledged, and whether a service that was started again still has it, whole.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{server::Client, setting::Fact};

/// What an answer promised.
pub struct Acknowledged {
    pub version: u64,
    pub digest: String,
    /// Edits that the version added, by id.
    pub added: Vec<(String, Fact)>,
    /// Edits that it took out.
    pub removed: Vec<String>,
}

/// Every acknowledged version of one log.
#[derive(Default)]
pub struct History {
    versions: BTreeMap<u64, Acknowledged>,
    /// The edits that are active after them.
    active: BTreeSet<String>,
    /// Up to which version sets and edits have been compared.
    checked: u64,
}

impl History {
    /// Takes an answer up. No version is given to two requests.
    pub fn note(&mut self, acknowledged: Acknowledged) {
        let version = acknowledged.version;
        assert!(self.versions.insert(version, acknowledged).is_none(), "version {version} answers two requests");
    }

    /// How many versions were acknowledged.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Every acknowledged version is in the log with its digest, no number is missing, and there are no more versions
    /// than answered and `unanswered` requests.
    pub async fn check_acknowledged(&self, client: &Client, unanswered: usize) {
        let digests = digests(client).await;
        let (newest, most) = (digests.len() - 1, self.versions.len() + unanswered);
        assert!(digests.keys().copied().eq(0..=newest as u64), "versions have no gaps");
        assert!(newest <= most, "{newest} versions of {most} requests");
        for (number, acknowledged) in &self.versions {
            assert_eq!(digests.get(number), Some(&acknowledged.digest), "version {number} of {newest}");
        }
    }

    /// Once every request is answered: the versions are those of the answers, one each, and each has the set and the
    /// edits that the answers make, neither more nor less.
    pub async fn check_sets(&mut self, client: &Client) {
        let newest = client.newest().await["version"].as_u64().unwrap();
        assert!(self.versions.keys().copied().eq(1..=newest), "versions 1 to {newest} answer one request each");
        for (number, acknowledged) in self.versions.range(self.checked + 1..) {
            for id in &acknowledged.removed {
                assert!(self.active.remove(id), "version {number} removes {id}, which is not active");
            }
            self.active.extend(acknowledged.added.iter().map(|(id, _)| id.clone()));
            let version = client.version(*number).await;
            assert_eq!(version["digest"], acknowledged.digest);
            assert_eq!(version["active_edits"], json!(self.active), "version {number}");
        }
        for (number, acknowledged) in self.versions.range(self.checked + 1..) {
            for (id, fact) in &acknowledged.added {
                let edit = client.get(&format!("/edits/{id}")).await.with_status(200);
                let (request, expected) = (&edit["request"], json!([number, fact.prompt, fact.target]));
                assert_eq!(json!([edit["version"], request["prompt"], request["target"]]), expected);
                assert_eq!(edit["status"] == "applied", self.active.contains(id), "{edit}");
            }
        }
        self.checked = newest;
    }

    /// Going back to the empty set gives the base's digest.
    pub async fn check_empty(&self, client: &Client) {
        let base = client.version(0).await;
        let emptied: Value = client.post("/rollback", &json!({"to_version": 0})).await.with_status(200);
        assert_eq!(emptied["digest"], base["digest"]);
    }
}

/// The digest of every version that the service lists.
async fn digests(client: &Client) -> BTreeMap<u64, String> {
    let mut digests = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/versions?limit=200{cursor}")).await.with_status(200);
        let version = |row: &Value| (row["version"].as_u64().unwrap(), row["digest"].as_str().unwrap().to_owned());
        digests.extend(page["versions"].as_array().unwrap().iter().map(version));
        let Some(next) = page["next_cursor"].as_str() else { return digests };
        cursor = format!("&cursor={next}");
    }
}
