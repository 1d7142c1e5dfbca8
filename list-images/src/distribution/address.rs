//! Only public addresses, over TLS, are allowed for registries and their redirects. Private, loopback and link-local addresses
//! belong to the function's network and to Lambda's runtime API.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

/// Resolves host names to public addresses only.
pub struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The request sets the port.
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = addresses.filter(|address| is_public_address(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("{} has no public address", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// The most hosts that one host can redirect to. Each connection stays open for some time.
const HOSTS: usize = 10;

/// Follows up to `limit` redirects of a request to URLs with this scheme. A redirect from another host is not followed, because
/// the HTTP client would send the login again.
pub fn redirects(scheme: &'static str, limit: usize) -> Policy {
    let targets: Mutex<HashMap<String, HashSet<String>>> = Mutex::default();
    Policy::custom(move |attempt| {
        let previous = attempt.previous();
        if previous.len() > limit {
            return attempt.error(format!("more than {limit} redirects"));
        }
        if !is_allowed(scheme, attempt.url()) {
            let message = format!("redirect to {}, which is not a public {scheme} URL", attempt.url());
            return attempt.error(message);
        }
        let (Some(first), Some(last)) = (previous.first(), previous.last()) else { return attempt.follow() };
        if last.origin() != first.origin() {
            return attempt.error("redirect from another host");
        }
        let host = |url: &Url| url.host_str().unwrap_or_default().to_owned();
        let mut targets = targets.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = targets.entry(host(first)).or_default();
        hosts.insert(host(attempt.url()));
        if hosts.len() > HOSTS {
            drop(targets);
            return attempt.error(format!("redirects to more than {HOSTS} hosts"));
        }
        drop(targets);
        attempt.follow()
    })
}

/// Whether a registry with this scheme can use this URL.
pub fn is_allowed(scheme: &str, url: &Url) -> bool {
    // Tests use http and this machine.
    url.scheme() == scheme && (scheme != "https" || is_public(url))
}

/// Whether a URL has a public address, or a name. Names are checked when they are resolved.
pub fn is_public(url: &Url) -> bool {
    match url.host_str() {
        None => false,
        Some(host) => match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) => is_public_address(address),
            Err(_) => host != "localhost" && !host.ends_with(".localhost"),
        },
    }
}

/// Whether an address is public, according to IANA's registries of special-purpose addresses
/// ([IPv4](https://www.iana.org/assignments/iana-ipv4-special-registry),
/// [IPv6](https://www.iana.org/assignments/iana-ipv6-special-registry)).
fn is_public_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || first == 0
        // Shared by carriers, protocol assignments, benchmarks, and reserved.
        || (first == 100 && (64..128).contains(&second))
        || [first, second, third] == [192, 0, 0]
        || (first == 198 && matches!(second, 18 | 19))
        || first >= 240;
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Global unicast, without 6to4 and Teredo, which wrap other addresses.
        [0x2002, ..] | [0x2001, 0, ..] => false,
        [first, ..] if first & 0xe000 == 0x2000 => true,
        // NAT64, which translates public addresses.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    #[test]
    fn private_and_special_addresses_are_not_public() {
        for text in
            ["https://quay.io/v2/", "https://1.1.1.1/", "https://[2606:4700::1111]/", "https://[64:ff9b::101:101]/"]
        {
            assert!(is_allowed("https", &url(text)), "{text}");
        }
        for text in [
            "http://quay.io/",
            "https://localhost/",
            "https://a.localhost:9001/",
            "https://127.0.0.1:9001/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://10.0.0.1/",
            "https://172.16.0.1/",
            "https://192.168.0.1/",
            "https://169.254.170.2/",
            "https://100.64.0.1/",
            "https://0.0.0.0/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://[2002:7f00:1::]/",
            "file:///etc/passwd",
        ] {
            assert!(!is_allowed("https", &url(text)), "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_with_a_loopback_address_is_not_resolved() {
        let error = PublicOnly.resolve("localhost".parse().expect("it is a name")).await.err().expect("it is loopback");
        assert_eq!(error.to_string(), "localhost has no public address");
    }

    #[test]
    fn addresses_next_to_reserved_networks_are_public() {
        for address in ["8.18.8.8", "8.100.8.8", "100.1.1.1", "100.128.0.1", "198.17.0.1", "198.20.0.1", "192.0.1.1"] {
            assert!(is_public_address(address.parse().expect(address)), "{address}");
        }
        for address in ["198.18.0.1", "198.19.0.1", "100.127.0.1", "192.0.0.8", "224.0.0.1", "240.0.0.1"] {
            assert!(!is_public_address(address.parse().expect(address)), "{address}");
        }
    }
}
