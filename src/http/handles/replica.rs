//! This process's real place among the replicas behind http's trait.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    http::state::Replica,
    writer::{ReplicaHandle, ReplicaStatus},
};

#[async_trait]
impl Replica for ReplicaHandle {
    fn status(&self) -> ReplicaStatus {
        Self::status(self)
    }

    async fn reach(&self, version: u64, limit: Duration) -> Result<(), u64> {
        Self::reach(self, version, limit).await
    }
}
