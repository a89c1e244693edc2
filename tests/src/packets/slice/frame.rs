//! A packet in memory.

use lb_common::{
    abi::{Pod, as_bytes, from_bytes},
    path::{self, Covered, Delta, Frame},
};

/// A packet in a vector.
pub(super) struct SliceFrame {
    pub bytes: Vec<u8>,
    pub ingress: u32,
    /// There is no room for more, and nothing is cut off.
    pub is_rigid: bool,
}

impl Frame for SliceFrame {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn reach(&mut self, _: usize) {}

    fn extension(&self, offset: usize, kind: u8) -> u64 {
        path::extension(self, offset, kind)
    }

    fn sum(&self, offset: usize, bytes: usize) -> u64 {
        path::sum(self, offset, bytes)
    }

    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        from_bytes(self.bytes.get(offset..)?)
    }

    fn store<T: Pod>(&mut self, offset: usize, value: &T, _: Covered) -> Option<()> {
        let bytes = as_bytes(value);
        self.bytes
            .get_mut(offset..offset + bytes.len())?
            .copy_from_slice(bytes);
        Some(())
    }

    fn repair_transport(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()> {
        let found = self.load::<u16>(offset)?;
        if udp && found == 0 {
            return Some(());
        }
        let repaired = match addresses.and(ports).apply(found) {
            0 if udp => 0xffff,
            repaired => repaired,
        };
        self.store(offset, &repaired, Covered::Neutral)
    }

    fn is_checksum_left(&mut self, _: usize) -> Option<bool> {
        Some(false)
    }

    fn segment(&self) -> u32 {
        0
    }

    fn wrap(&mut self, by: usize, _: bool) -> Option<()> {
        self.grow_head(by)
    }

    fn pull(&mut self, _: usize) -> Option<()> {
        Some(())
    }

    fn grow_head(&mut self, by: usize) -> Option<()> {
        if self.is_rigid {
            return None;
        }
        self.bytes.splice(0..0, std::iter::repeat_n(0, by));
        Some(())
    }

    fn set_length(&mut self, length: usize) -> Option<()> {
        if self.is_rigid {
            return None;
        }
        self.bytes.resize(length, 0);
        Some(())
    }
}
