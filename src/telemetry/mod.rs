//! What the service tells about itself: metrics for Prometheus, events for people, and traces for a collector.

pub mod course;
pub mod metrics;
pub mod traces;
pub mod tracing;

pub use course::Course;
pub use metrics::Metrics;
pub use traces::{Traces, TracesConfig};
