//! The real writer and the real engine behind http's traits.

mod edits;
mod generates;
