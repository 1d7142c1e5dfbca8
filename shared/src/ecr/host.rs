//! The hosts of ECR's private registries.

use crate::reference::RegistryHost;

/// The domains of ECR's registries: behind `account.dkr.ecr.region`, and behind `account.dkr-ecr.region`, which is reached by
/// IPv4 and IPv6, where that is documented; a line for each partition. See
/// [ECR's endpoints](https://docs.aws.amazon.com/general/latest/gr/ecr.html) and the
/// [requests by IPv6](https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-requests.html).
const DOMAINS: [(&str, Option<&str>); 7] = [
    ("amazonaws.com", Some("on.aws")),
    ("amazonaws.com.cn", Some("on.amazonwebservices.com.cn")),
    ("amazonaws.eu", None),
    ("c2s.ic.gov", None),
    ("sc2s.sgov.gov", None),
    ("cloud.adc-e.uk", None),
    ("csp.hci.ic.gov", None),
];

/// Which private registry of ECR a host belongs to. Its names, such as that for IPv6, are equal here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcrHost<'a> {
    /// The account, 12 digits.
    pub account: &'a str,
    /// The region.
    pub region: &'a str,
    /// The domain of the partition.
    domain: &'static str,
}

impl<'a> EcrHost<'a> {
    /// The registry at `host`, if it is one of ECR's: `account.dkr.ecr.region.domain` with exactly these labels, `ecr-fips`
    /// for `ecr`, and `account.dkr-ecr.region.domain`.
    #[must_use]
    pub fn of(host: &'a RegistryHost) -> Option<Self> {
        let (account, service) = host.as_str().split_once('.')?;
        let from_region = |prefixes: [&str; 2]| prefixes.into_iter().find_map(|prefix| service.strip_prefix(prefix));
        let (rest, has_ipv6) = match from_region(["dkr.ecr.", "dkr.ecr-fips."]) {
            Some(rest) => (rest, false),
            None => (from_region(["dkr-ecr.", "dkr-ecr-fips."])?, true),
        };
        let (region, domain) = rest.split_once('.')?;
        let (domain, _) =
            DOMAINS.iter().find(|(plain, ipv6)| Some(domain) == if has_ipv6 { *ipv6 } else { Some(*plain) })?;
        (is_account(account) && is_region(region)).then_some(Self { account, region, domain })
    }
}

/// Whether both hosts are names of one registry.
#[must_use]
pub fn is_same_registry(a: &RegistryHost, b: &RegistryHost) -> bool {
    a == b || EcrHost::of(a).is_some_and(|registry| EcrHost::of(b) == Some(registry))
}

/// Whether a text is the id of an AWS account.
#[must_use]
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a text is like the name of a region: `eu-west-1`, `us-gov-west-1`.
fn is_region(text: &str) -> bool {
    let mut parts = text.split('-');
    let number = parts.next_back().is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    let mut words = 0;
    number
        && parts.all(|part| {
            words += 1;
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase())
        })
        && words >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> RegistryHost {
        text.parse().expect(text)
    }

    #[test]
    fn a_host_of_ecr_tells_account_and_region() {
        for (text, region) in [
            ("222222222222.dkr.ecr.us-west-2.amazonaws.com", "us-west-2"),
            ("222222222222.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("222222222222.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("222222222222.dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
            ("222222222222.dkr.ecr.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
            ("222222222222.dkr-ecr.eu-west-1.on.aws", "eu-west-1"),
            ("222222222222.dkr-ecr-fips.us-east-1.on.aws", "us-east-1"),
            ("222222222222.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "cn-north-1"),
        ] {
            let host = host(text);
            let found = EcrHost::of(&host).expect(text);
            assert_eq!((found.account, found.region), ("222222222222", region));
        }
    }

    #[test]
    fn a_host_that_only_looks_like_one_of_ecr_is_not() {
        for text in [
            "222222222222.dkr.ecr.us-east-1.evil.example",
            "222222222222.dkr.ecr.us-east-1.amazonaws.com.evil.example",
            "222222222222.dkr.ecr.us-east-1.evil.amazonaws.com",
            "222222222222.dkr.ecr.us-east-1.amazonaws.com:8443",
            "222222222222.dkr.ecr.us-east-1.evilamazonaws.com",
            "222222222222.dkr.ecr.us-east-1.on.aws",
            "222222222222.dkr-ecr.us-east-1.amazonaws.com",
            "evil.222222222222.dkr.ecr.us-east-1.amazonaws.com",
            "22.dkr.ecr.us-west-2.amazonaws.com",
            "222222222222.dkr.ecr.evil.amazonaws.com",
            "222222222222.dkr.ecr.evil-1.amazonaws.com",
            "222222222222.dkr.ecr.us-west-two.amazonaws.com",
            "222222222222.dkr.ecr.us-w3st-1.amazonaws.com",
            "public.ecr.aws",
            "docker.io",
        ] {
            assert_eq!(EcrHost::of(&host(text)), None, "{text}");
        }
    }

    #[test]
    fn the_names_of_one_registry_are_equal_and_those_of_another_are_not() {
        let registry = host("222222222222.dkr.ecr.us-west-2.amazonaws.com");
        for text in ["222222222222.dkr-ecr.us-west-2.on.aws", "222222222222.dkr.ecr-fips.us-west-2.amazonaws.com"] {
            assert!(is_same_registry(&registry, &host(text)), "{text}");
        }
        for text in [
            "222222222222.dkr.ecr.us-west-1.amazonaws.com",
            "222222222222.dkr.ecr.us-west-2.amazonaws.com.cn",
            "quay.io",
        ] {
            assert!(!is_same_registry(&registry, &host(text)), "{text}");
        }
    }
}
