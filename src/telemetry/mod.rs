//! What the service tells about itself: metrics for Prometheus and traces for people.

pub mod metrics;
pub mod tracing;

pub use metrics::Metrics;
