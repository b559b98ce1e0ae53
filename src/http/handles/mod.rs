//! The real writer, engine and place among replicas behind http's traits.

mod edits;
mod generates;
mod replica;
