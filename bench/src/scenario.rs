//! What is measured: a registry to copy from, and what of it is at the destination already.

use std::{fmt, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    fake::{Conditions, Registries},
    registry::{PAGE, Registry, repository_name, tag},
};

/// The account and region of the source.
pub const SOURCE: (&str, &str) = ("222222222222", "us-west-2");

/// The account and region of the destination.
pub const DESTINATION: (&str, &str) = ("111111111111", "us-east-1");

/// The size of the registry for which there are goals.
pub const LARGE: usize = 100_000;

/// A registry to copy from, and what of it is at the destination already.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The source's repositories.
    pub repositories: usize,
    /// The images in each of them.
    pub images: usize,
    /// What is at the destination.
    pub destination: Destination,
    /// How many of the repositories are asked for, each image by its reference; `None` for the whole registry.
    pub selected: Option<usize>,
}

/// What is at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The source's images.
    Same,
    /// The source's tags, with other digests.
    Changed,
    /// Not even a repository.
    Empty,
}

/// What list-images finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Images that are looked at.
    pub listed: usize,
    /// Those of them that are at the destination.
    pub unchanged: usize,
    /// Those of them that are not.
    pub to_copy: usize,
}

impl fmt::Display for Findings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listed, unchanged, to_copy } = self;
        write!(formatter, "{listed} images, {unchanged} unchanged, {to_copy} to copy")
    }
}

impl Destination {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Same, Self::Changed, Self::Empty];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "nothing changed",
            Self::Changed => "everything changed",
            Self::Empty => "everything new",
        }
    }
}

impl Scenario {
    /// All of them, in the order of the table.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let sizes = [10, 100, 1_000].into_iter();
        let mut all: Vec<_> = sizes
            .flat_map(|repositories| Destination::ALL.map(|destination| Self::whole(repositories, 100, destination)))
            .collect();
        all.push(Self::whole(100, 1_000, Destination::Same));
        all.push(Self { selected: Some(750), ..Self::whole(1_000, 100, Destination::Same) });
        all
    }

    fn whole(repositories: usize, images: usize, destination: Destination) -> Self {
        Self { repositories, images, destination, selected: None }
    }

    /// Its name in the table.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.selected.is_some() { "a list of references" } else { self.destination.name() }
    }

    /// How many repositories list-images must look at.
    #[must_use]
    pub fn looked_at(&self) -> usize {
        self.selected.unwrap_or(self.repositories)
    }

    /// What list-images is to find out.
    #[must_use]
    pub fn expected(&self) -> Findings {
        let listed = self.looked_at() * self.images;
        let unchanged = if self.destination == Destination::Same { listed } else { 0 };
        Findings { listed, unchanged, to_copy: listed - unchanged }
    }

    /// The fewest calls with which ECR and S3 let anybody do this: both logins, the source's repositories, the images of
    /// each repository at both ends (where there is none, one call tells), and the plan, if there is one. For a list of
    /// references there is no such number: it depends on how the references are looked up.
    #[must_use]
    pub fn fewest_calls(&self) -> Option<usize> {
        if self.selected.is_some() {
            return None;
        }
        let pages = self.images.div_ceil(PAGE).max(1);
        let there = if self.destination == Destination::Empty { 1 } else { pages };
        let plan = usize::from(self.expected().to_copy > 0);
        Some(2 + self.repositories.div_ceil(PAGE).max(1) + self.repositories * (pages + there) + plan)
    }

    /// The registries.
    #[must_use]
    pub fn registries(&self) -> Registries {
        let (there, variant) = match self.destination {
            Destination::Same => (self.repositories, 0),
            Destination::Changed => (self.repositories, 1),
            Destination::Empty => (0, 0),
        };
        Registries {
            source: Registry::new(SOURCE.0, SOURCE.1, self.repositories, self.images, 0),
            destination: Registry::new(DESTINATION.0, DESTINATION.1, there, self.images, variant),
        }
    }

    /// How AWS behaves: as in `usual`, but at its best where reading a list is what is measured.
    #[must_use]
    pub fn conditions(&self, usual: Conditions) -> Conditions {
        if self.selected.is_some() { Conditions { latency: Duration::ZERO, throttled: 0.0 } } else { usual }
    }

    /// What the state machine sends to list-images.
    #[must_use]
    pub fn payload(&self) -> Value {
        let input = self.selected.map_or_else(|| json!({}), |count| json!({"srcImageList": self.references(count)}));
        json!({"execution": "bench", "input": input})
    }

    fn references(&self, repositories: usize) -> String {
        let one = |number| {
            let name = repository_name(number);
            (0..self.images).map(move |image| format!("{name}:{}", tag(image)))
        };
        (0..repositories).flat_map(one).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_calls_are_counted_by_pages() {
        let fewest = |repositories, images, destination| {
            Scenario::whole(repositories, images, destination).fewest_calls().expect("it is not a list")
        };
        assert_eq!(fewest(10, 100, Destination::Same), 2 + 1 + 20);
        assert_eq!(fewest(10, 100, Destination::Changed), 2 + 1 + 20 + 1);
        assert_eq!(fewest(1_001, 1_001, Destination::Same), 2 + 2 + 1_001 * 4);
        assert_eq!(fewest(1_001, 1_001, Destination::Empty), 2 + 2 + 1_001 * 3 + 1);
    }

    #[test]
    fn what_is_expected_adds_up() {
        for scenario in Scenario::all() {
            let Findings { listed, unchanged, to_copy } = scenario.expected();
            assert_eq!(listed, unchanged + to_copy, "{scenario:?}");
        }
    }

    #[test]
    fn a_list_names_each_image_once() {
        let scenario = Scenario { selected: Some(2), ..Scenario::whole(3, 2, Destination::Same) };
        assert_eq!(
            scenario.payload()["input"]["srcImageList"],
            "team-1/service-1:v1,team-1/service-1:v2,team-1/service-2:v1,team-1/service-2:v2"
        );
        assert_eq!(scenario.expected().listed, 4);
    }
}
