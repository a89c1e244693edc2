//! Sources whose tasks never run: a test says what they report, when they are looked at and when
//! they are saved.

use super::*;
use crate::discovery::Report;

impl Sources {
    /// Reports on behalf of a source of backends.
    pub(crate) fn say(&self, name: &SourceName, report: Report) {
        let life = self.hub.lock().running.get(name).map(|source| source.life);
        if let Some(life) = life {
            self.hub
                .take(name, life, ruled::AnyReport::Backends(report));
        }
    }

    /// Puts in force what is due.
    pub(crate) fn advance(&self) {
        self.hub.advance();
    }

    /// Saves what is not saved yet.
    pub(crate) fn save(&self) {
        let names: Vec<_> = self.hub.lock().running.keys().cloned().collect();
        for name in names {
            self.hub.save_one(&name, true);
        }
    }
}
