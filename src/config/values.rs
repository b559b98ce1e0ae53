//! Parsers of values that have limits, and the values that are more than a number.

use std::{fmt, net::IpAddr, num::NonZeroU32, str::FromStr, time::Duration};

use ipnet::IpNet;

use crate::keys::Scope;

/// A probability: 0 to 1.
pub fn probability(text: &str) -> Result<f32, String> {
    number(text, "from 0 to 1", |value| (0.0..=1.0).contains(&value))
}

/// Zero or more.
pub fn non_negative(text: &str) -> Result<f32, String> {
    number(text, "0 or more", |value| value >= 0.0)
}

/// More than zero.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, "above 0", |value: f64| value > 0.0)
}

/// Zero or more, in double precision.
pub fn share(text: &str) -> Result<f64, String> {
    number(text, "0 or more", |value: f64| value >= 0.0)
}

/// A count of 2 or more.
pub fn at_least_two(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count >= 2 => Ok(count),
        Ok(_) => Err("a whole number of at least 2 is needed".to_owned()),
        Err(error) => Err(format!("{error}; a whole number of at least 2 is needed")),
    }
}

fn number<T: FromStr + Copy + Into<f64>>(text: &str, range: &str, fits: impl Fn(T) -> bool) -> Result<T, String>
where
    T::Err: fmt::Display,
{
    let value: T = text.parse().map_err(|error| format!("{error}; a number {range} is needed"))?;
    if value.into().is_finite() && fits(value) { Ok(value) } else { Err(format!("a number {range} is needed")) }
}

/// `sqlite://PATH`, relative or absolute, or `postgres://...`.
pub fn database(text: &str) -> Result<String, String> {
    let place = ["sqlite://", "postgres://", "postgresql://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    match place {
        Some("") | None => Err("a database is named as sqlite://PATH or postgres://HOST/DATABASE".to_owned()),
        Some(_) => Ok(text.to_owned()),
    }
}

/// An `http://` address, without a slash at its end.
pub fn server(text: &str) -> Result<String, String> {
    plain(text, "a server", "put a proxy before the server, or use http://")
}

/// The same, of a collector of traces.
pub fn collector(text: &str) -> Result<String, String> {
    plain(text, "a collector", "name a collector beside the service by http://, which can hand traces on by https")
}

fn plain(text: &str, what: &str, instead: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err(format!("https is not supported; {instead}"));
    }
    match text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')) {
        Some("") | None => Err(format!("{what} is named as http://ADDRESS:PORT")),
        Some(rest) => Ok(format!("http://{rest}")),
    }
}

/// A name that the log records changes under: 1 to 128 visible ASCII characters.
pub fn actor(text: &str) -> Result<String, String> {
    if (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(format!("a name of 1 to 128 visible ASCII characters is needed; {} bytes were given", text.len()))
}

/// What stands in a header after `Bearer`: visible ASCII characters.
pub fn api_key(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err("a key is made of visible ASCII characters".to_owned())
}

/// Seconds: 0 or more, not more than a year.
pub fn seconds(text: &str) -> Result<Duration, String> {
    number(text, "from 0 to 31536000", |value: f64| (0.0..=31_536_000.0).contains(&value)).map(Duration::from_secs_f64)
}

/// A network, or an address as the network of it alone.
pub fn network(text: &str) -> Result<IpNet, String> {
    let address = |_| text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(address).map_err(|_| "an address or a network such as 10.0.0.0/8 is needed".to_owned())
}

/// Most requests a minute of each key on the routes of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub scope: Scope,
    pub per_minute: NonZeroU32,
}

/// `SCOPE=N`.
pub fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let (scope, number) = text.split_once('=').ok_or_else(|| format!("{text:?} is not SCOPE=N"))?;
    // A key with the scope admin is counted where it is used.
    let limited = || Scope::ALL.into_iter().filter(|scope| *scope != Scope::Admin);
    let scope = limited().find(|known| known.name() == scope).ok_or_else(|| {
        format!("{scope:?} is none of the scopes {}", limited().map(Scope::name).collect::<Vec<_>>().join(", "))
    })?;
    let per_minute = number.parse().map_err(|error| format!("{error}; a whole number of at least 1 is needed"))?;
    Ok(RateLimit { scope, per_minute })
}

/// What a process may be among those that share a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The writer, when there is no other.
    Auto,
    /// A follower.
    Follower,
}

/// Where a network computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The GPU of this number, from 0.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    /// `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        number.map(Self::Cuda).ok_or_else(|| format!("{text:?} is none of cpu, cuda, cuda:N"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// What is done about something that a check has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// It is not looked for.
    Off,
    /// The answer and the log name it.
    Warn,
    /// The edit is rejected.
    Reject,
}

/// How the changes of several edits become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Composition {
    /// Their sum, as in the paper.
    Sum,
    /// A joint solve over the active edits.
    Joint,
    /// Each edit beside the base weights, behind a gate that says where it speaks.
    Gated,
}

/// From which texts the trainer takes the input on which an edit should change nothing. The weights add up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalityMix {
    /// The record's own neighbour prompt: same relation, same true answer.
    pub neighbour: f64,
    /// The prompt of another record.
    pub other: f64,
    /// A window of running text.
    pub text: f64,
}

impl LocalityMix {
    /// The mix without running text, for where there is none; none if nothing would remain.
    pub fn without_text(self) -> Option<Self> {
        Self::scaled(self.neighbour, self.other, 0.0)
    }

    /// The weights divided by their sum; none if that is zero.
    fn scaled(neighbour: f64, other: f64, text: f64) -> Option<Self> {
        let sum = neighbour + other + text;
        (sum > 0.0).then(|| Self { neighbour: neighbour / sum, other: other / sum, text: text / sum })
    }
}

impl FromStr for LocalityMix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut neighbour, mut other, mut running) = (0.0, 0.0, 0.0);
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=WEIGHT"))?;
            let weight: f64 = number(weight.trim(), "0 or more", |value: f64| value >= 0.0)
                .map_err(|error| format!("{}: {error}", name.trim()))?;
            match name.trim() {
                "neighbour" => neighbour = weight,
                "other" => other = weight,
                "text" => running = weight,
                name => return Err(format!("{name:?} is not one of neighbour, other, text")),
            }
        }
        Self::scaled(neighbour, other, running).ok_or_else(|| "at least one weight must be above 0".to_owned())
    }
}

impl fmt::Display for LocalityMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour={},other={},text={}", self.neighbour, self.other, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_their_range_are_refused_with_it() {
        assert_eq!(probability("0.25"), Ok(0.25));
        for bad in ["1.5", "-0.1", "NaN", "x"] {
            assert!(probability(bad).unwrap_err().contains("from 0 to 1"), "{bad}");
        }
        assert!(non_negative("inf").is_err());
        assert!(positive("0").is_err());
        assert_eq!(positive("1e-4"), Ok(1e-4));
        assert_eq!(at_least_two("2"), Ok(2));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").unwrap_err().contains("from 0") && seconds("inf").is_err());
        assert!(at_least_two("1").unwrap_err().contains("at least 2") && at_least_two("x").is_err());
    }

    #[test]
    fn a_mix_is_normalised_and_can_do_without_text() {
        let mix: LocalityMix = "neighbour=2, other=1, text=1".parse().unwrap();
        assert_eq!(mix, LocalityMix { neighbour: 0.5, other: 0.25, text: 0.25 });
        let without = mix.without_text().unwrap();
        assert!((without.neighbour - 2.0 / 3.0).abs() < 1e-12 && without.text == 0.0);
        assert_eq!("text=1".parse::<LocalityMix>().unwrap().without_text(), None);
        assert_eq!(mix.to_string().parse(), Ok(mix));
        assert!("neighbor=1".parse::<LocalityMix>().unwrap_err().contains("neighbour, other, text"));
        assert!("other=-1".parse::<LocalityMix>().unwrap_err().contains("other: a number 0 or more"));
        assert!("text=0".parse::<LocalityMix>().is_err());
    }

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(bad.parse::<Device>().unwrap_err().contains("none of cpu, cuda, cuda:N"), "{bad:?}");
        }
    }

    #[test]
    fn networks_and_rates_say_what_they_should_be() {
        assert_eq!(network("10.0.0.0/8"), Ok("10.0.0.0/8".parse().unwrap()));
        assert_eq!(network("::1"), Ok("::1/128".parse().unwrap()));
        assert!(network("proxy.example").unwrap_err().contains("10.0.0.0/8"));
        let sixty = NonZeroU32::new(60).unwrap();
        assert_eq!(rate_limit("edit=60"), Ok(RateLimit { scope: Scope::Edit, per_minute: sixty }));
        for (bad, said) in [("edit", "SCOPE=N"), ("root=1", "read, generate, edit, metrics"), ("edit=0", "at least 1")]
        {
            assert!(rate_limit(bad).unwrap_err().contains(said), "{bad}");
        }
    }

    #[test]
    fn addresses_name_their_scheme() {
        assert_eq!(server("http://localhost:8080/"), Ok("http://localhost:8080".to_owned()));
        assert!(server("https://example.org").unwrap_err().contains("https"));
        assert!(server("localhost:8080").is_err());
        assert_eq!(collector("http://otel:4317/"), Ok("http://otel:4317".to_owned()));
        assert!(collector("https://otel:4317").unwrap_err().contains("beside the service"));
        assert!(collector("otel:4317").unwrap_err().starts_with("a collector is named"));
        assert!(database("sqlite://data/amend.db").is_ok());
        assert!(database("postgres://amend@db/amend").is_ok() && database("postgresql://db/amend").is_ok());
        assert!(database("sqlite://").is_err() && database("postgres://").is_err() && database("mysql://x").is_err());
        assert!(actor("ops@example").is_ok() && actor("").is_err() && actor("two words").is_err());
    }
}
