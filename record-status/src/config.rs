//! What the stack's parameters ask for.

use shared::Result;
use shared::config::{Environment, RegistryConfig};

/// The configuration of record-status.
#[derive(Debug)]
pub struct Config {
    /// The registry that images go to.
    pub destination: RegistryConfig,
    /// Which platforms of an image are copied, as the rows say it.
    pub platforms: String,
    /// The table with a row for each image.
    pub image_table: String,
    /// The table with an item for each execution.
    pub execution_table: String,
}

impl Config {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When a variable is missing or has a value that cannot be used.
    pub fn read(environment: &Environment) -> Result<Self> {
        Ok(Self {
            destination: RegistryConfig::destination(environment)?,
            platforms: environment.optional("PLATFORMS").unwrap_or("all").to_owned(),
            image_table: environment.required("IMAGE_TABLE")?.to_owned(),
            execution_table: environment.required("EXECUTION_TABLE")?.to_owned(),
        })
    }
}
