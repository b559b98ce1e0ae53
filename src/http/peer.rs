//! Where a request comes from. What a client says of itself in `X-Forwarded-For` counts only as far as proxies that the
//! operator named have added it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request},
    http::HeaderName,
};
use ipnet::IpNet;

pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies whose `X-Forwarded-For` is believed; none unless named.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Arc<[IpNet]>);

impl Proxies {
    /// These.
    pub fn new(trusted: impl IntoIterator<Item = IpNet>) -> Self {
        Self(trusted.into_iter().collect())
    }

    /// The client's address: the other end of the connection; where that is a trusted proxy, the last address in
    /// `X-Forwarded-For` that is not one. None where there is no connection.
    pub(super) fn client(&self, request: &Request) -> Option<IpAddr> {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip().to_canonical();
        if !self.trusts(peer) {
            return Some(peer);
        }
        let values: Vec<&str> =
            request.headers().get_all(FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or_default()).collect();
        let mut client = peer;
        for hop in values.iter().flat_map(|value| value.split(',')).rev() {
            // What stands left of something that is no address was not written by a proxy that can be trusted.
            let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
            client = address.to_canonical();
            if !self.trusts(client) {
                break;
            }
        }
        Some(client)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let proxies = Proxies::new(trusted.iter().map(|net| net.parse::<IpNet>().unwrap()));
        let request = forwarded.iter().fold(Request::get("/"), |request, value| request.header(&FORWARDED_FOR, *value));
        let mut request = request.body(Body::empty()).unwrap();
        assert_eq!(proxies.client(&request), None, "no connection");
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        proxies.client(&request).unwrap().to_string()
    }

    #[test]
    fn what_a_stranger_says_of_itself_does_not_count() {
        assert_eq!(client(&[], "10.0.0.1", &["1.2.3.4"]), "10.0.0.1");
        assert_eq!(client(&["10.0.0.2/32"], "10.0.0.1", &["1.2.3.4"]), "10.0.0.1");
    }

    #[test]
    fn of_a_trusted_proxy_the_last_stranger_counts() {
        let trusted = ["10.0.0.0/8", "::1/128"];
        assert_eq!(client(&trusted, "10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client(&trusted, "10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&trusted, "::ffff:10.0.0.1", &["6.6.6.6, 1.2.3.4,10.9.9.9"]), "1.2.3.4");
        assert_eq!(client(&trusted, "::1", &["6.6.6.6", "1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&trusted, "::1", &["1.2.3.4, what, 10.0.0.9"]), "10.0.0.9");
    }
}
