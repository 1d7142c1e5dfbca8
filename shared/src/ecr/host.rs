//! The hosts of ECR's private registries.

use crate::reference::RegistryHost;

/// The domains of each partition: of `account.dkr.ecr.region`, and of `account.dkr-ecr.region`, the documented hosts for IPv6.
/// See [ECR's endpoints](https://docs.aws.amazon.com/general/latest/gr/ecr.html) and
/// [requests over IPv6](https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-requests.html). The last is the partition in
/// ARNs. GovCloud has the same domains as `aws`.
const DOMAINS: [(&str, Option<&str>, &str); 7] = [
    ("amazonaws.com", Some("on.aws"), "aws"),
    ("amazonaws.com.cn", Some("on.amazonwebservices.com.cn"), "aws-cn"),
    ("amazonaws.eu", None, "aws-eusc"),
    ("c2s.ic.gov", None, "aws-iso"),
    ("sc2s.sgov.gov", None, "aws-iso-b"),
    ("cloud.adc-e.uk", None, "aws-iso-e"),
    ("csp.hci.ic.gov", None, "aws-iso-f"),
];

/// The private ECR registry of a host. The hosts of one registry, for example for IPv6, compare equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcrHost<'a> {
    /// 12 digits.
    pub account: &'a str,
    /// `eu-west-1`, for example.
    pub region: &'a str,
    /// `aws`, `aws-cn`, `aws-us-gov`, for example.
    partition: &'static str,
}

impl<'a> EcrHost<'a> {
    /// The registry at `host`; `None` unless the host is `account.dkr.ecr.region.domain` or `account.dkr-ecr.region.domain`,
    /// with `ecr` or `ecr-fips`.
    pub fn of(host: &'a RegistryHost) -> Option<Self> {
        let (account, service) = host.as_str().split_once('.')?;
        let from_region = |prefixes: [&str; 2]| prefixes.into_iter().find_map(|prefix| service.strip_prefix(prefix));
        let (rest, has_ipv6) = match from_region(["dkr.ecr.", "dkr.ecr-fips."]) {
            Some(rest) => (rest, false),
            None => (from_region(["dkr-ecr.", "dkr-ecr-fips."])?, true),
        };
        let (region, domain) = rest.split_once('.')?;
        let (_, _, partition) =
            DOMAINS.iter().find(|(plain, ipv6, _)| Some(domain) == if has_ipv6 { *ipv6 } else { Some(*plain) })?;
        let partition = if region.starts_with("us-gov-") { "aws-us-gov" } else { partition };
        (is_account(account) && is_region(region)).then_some(Self { account, region, partition })
    }

    /// The ARN of a repository in this registry. `*` in the name stands for any text.
    pub fn repository_arn(&self, name: &str) -> String {
        let Self { account, region, partition } = self;
        format!("arn:{partition}:ecr:{region}:{account}:repository/{name}")
    }
}

/// Whether both hosts are names of one registry.
pub fn is_same_registry(a: &RegistryHost, b: &RegistryHost) -> bool {
    a == b || EcrHost::of(a).is_some_and(|registry| EcrHost::of(b) == Some(registry))
}

/// Whether a text is the ID of an AWS account.
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a text has the form of a region's name: `eu-west-1`, `us-gov-west-1`.
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
    fn a_host_of_ecr_has_an_account_and_a_region() {
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
    fn the_arn_of_a_repository_has_the_partition_of_its_registry() {
        for (text, start) in [
            ("222222222222.dkr.ecr.us-west-2.amazonaws.com", "arn:aws:ecr:us-west-2"),
            ("222222222222.dkr.ecr.cn-north-1.amazonaws.com.cn", "arn:aws-cn:ecr:cn-north-1"),
            ("222222222222.dkr-ecr.us-gov-west-1.on.aws", "arn:aws-us-gov:ecr:us-gov-west-1"),
            ("222222222222.dkr.ecr.us-iso-east-1.c2s.ic.gov", "arn:aws-iso:ecr:us-iso-east-1"),
        ] {
            let host = host(text);
            let arn = EcrHost::of(&host).expect(text).repository_arn("app");
            assert_eq!(arn, format!("{start}:222222222222:repository/app"));
        }
    }

    #[test]
    fn a_host_that_only_looks_like_ecr_is_not_ecr() {
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
    fn two_hosts_of_one_registry_are_the_same_registry() {
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
