//! `discovery: {file: …}`.

use serde_yaml_ng::Mapping;

use super::{
    super::{check::node::path_fault, render::put},
    Fields, Form, Report, SourceRemarks,
};
use crate::{config::value::text, discovery::file::Config};

impl Form for Config {
    const KEYS: &'static [&'static str] = &["path"];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let value = fields.require("path", "the file source", "/etc/lbd/web.yaml", report)?;
        let path = text(value, "path", "an absolute path", report)?;
        Some(Self { path: path.into() })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        if let Some(fault) = path_fault(&self.path) {
            remarks.fault("path", fault);
        }
    }

    fn render(&self, map: &mut Mapping) {
        put(map, "path", self.path.to_string_lossy().into_owned());
    }
}
