//! Conversion requests: which of them leave KVM, and how the VMM's answer gets back to each type of guest.
//!
//! Linux `arch/x86/kvm/x86.c` (KVM_HC_MAP_GPA_RANGE), `svm/sev.c` (page state changes) and `vmx/tdx.c` (MapGPA).

use super::privateness::Privateness;
use crate::{PAGE_SIZE, PageState, VmType};

/// Bit of a request's attributes that asks for private pages.
pub const ENCRYPTED: u64 = 1 << 4;

/// Bit of a page state change that says it is one of 2 MiB; the only other bit that one has.
const LARGE: u64 = 1;

/// What KVM answers where nobody enabled these requests (Linux `KVM_ENOSYS`).
const NOT_ENABLED: i64 = -1000;

/// A TDX guest's request leaves in pieces of this size.
const TDX_PIECE: u64 = 2 << 20;

/// No address of a page state change is above this.
const END_OF_SNP_ADDRESSES: u64 = 1 << 52;

/// How a guest's conversion request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A plain guest finds this in RAX: 0, or a negative error number.
    Rax(i64),
    /// An SEV-SNP or TDX guest's request was granted.
    Granted,
    /// An SEV-SNP or TDX guest's request was refused. An SEV-SNP guest is told no more than that, whatever the reason.
    Refused,
    /// A TDX guest is to ask again from this address on; what lies before it is converted.
    Retry {
        /// With the bit that makes it a shared one, if the guest set it.
        gpa: u64,
    },
}

/// A request that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// As the guest gave it.
    next: u64,
    end: u64,
    pages: u64,
    attributes: u64,
}

/// What is next for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It leaves to the VMM with these arguments.
    Ask { request: Request, arguments: [u64; 3] },
    /// It is over.
    Tell(Answer),
}

/// A guest makes a request.
pub(super) fn begin(rule: Privateness, enabled: bool, gpa: u64, pages: u64, attributes: u64) -> Next {
    let end = pages.checked_mul(PAGE_SIZE).filter(|size| *size > 0).and_then(|size| gpa.checked_add(size));
    let end = end.filter(|_| gpa.is_multiple_of(PAGE_SIZE));
    let request = |attributes| Request { next: gpa, end: end.unwrap_or(gpa), pages, attributes };
    match rule.vm_type {
        VmType::SevSnp if !enabled || end.is_none_or(|end| end > END_OF_SNP_ADDRESSES) => Next::Tell(Answer::Refused),
        VmType::SevSnp => request(attributes & (ENCRYPTED | LARGE)).ask(rule),
        VmType::Tdx => match end {
            Some(end) if enabled && rule.of_tdx(gpa).1 == rule.of_tdx(end - 1).1 => request(0).ask(rule),
            _ => Next::Tell(Answer::Refused),
        },
        _ if !enabled => Next::Tell(Answer::Rax(NOT_ENABLED)),
        // KVM counts in pages here, so a range may end beyond the last byte that has an address.
        _ if !gpa.is_multiple_of(PAGE_SIZE) || pages == 0 || (gpa / PAGE_SIZE).checked_add(pages).is_none() => {
            Next::Tell(Answer::Rax(-i64::from(libc::EINVAL)))
        }
        _ => request(attributes).ask(rule),
    }
}

impl Request {
    fn ask(self, rule: Privateness) -> Next {
        let arguments = match rule.vm_type {
            VmType::Tdx => {
                let (gpa, state) = rule.of_tdx(self.next);
                let pages = (self.end - self.next).min(TDX_PIECE) / PAGE_SIZE;
                [gpa, pages, if state == PageState::Private { ENCRYPTED } else { 0 }]
            }
            _ => [self.next, self.pages, self.attributes],
        };
        Next::Ask { request: self, arguments }
    }

    /// The VMM has answered. `None` for an answer that KVM does not take.
    pub(super) fn go_on(self, rule: Privateness, ret: u64) -> Option<Next> {
        const INVALID: u64 = libc::EINVAL as u64;
        const AGAIN: u64 = libc::EAGAIN as u64;
        Some(match (rule.vm_type, ret) {
            (VmType::SevSnp, 0) => Next::Tell(Answer::Granted),
            (VmType::SevSnp, INVALID | AGAIN) => Next::Tell(Answer::Refused),
            (VmType::Tdx, 0) => match self.next.saturating_add(TDX_PIECE) {
                next if next >= self.end => Next::Tell(Answer::Granted),
                next => Self { next, ..self }.ask(rule),
            },
            (VmType::Tdx, INVALID) => Next::Tell(Answer::Refused),
            (VmType::Tdx, AGAIN) => Next::Tell(Answer::Retry { gpa: self.next }),
            (VmType::SevSnp | VmType::Tdx, _) => return None,
            (_, ret) => Next::Tell(Answer::Rax(ret as i64)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED_BIT: u64 = 1 << 47;

    fn rule(vm_type: VmType) -> Privateness {
        Privateness { vm_type, tdx_shared_bit: 47 }
    }

    fn asked(next: Next) -> (Request, [u64; 3]) {
        match next {
            Next::Ask { request, arguments } => (request, arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_guests_bits_pass_as_they_are_both_ways() {
        for vm_type in [VmType::Default, VmType::SwProtected, VmType::Sev, VmType::SevEs] {
            let (request, arguments) = asked(begin(rule(vm_type), true, 0x1000, 1 << 51, u64::MAX));
            assert_eq!(arguments, [0x1000, 1 << 51, u64::MAX]);
            for ret in [0, 22, 11, u64::MAX, (-22i64) as u64] {
                assert_eq!(request.go_on(rule(vm_type), ret), Some(Next::Tell(Answer::Rax(ret as i64))));
            }
        }
    }

    #[test]
    fn kvm_refuses_a_plain_guest_what_is_no_range() {
        let plain = |gpa, pages| begin(rule(VmType::Sev), true, gpa, pages, 0);
        let refused = Next::Tell(Answer::Rax(-22));
        assert_eq!(plain(0x1001, 1), refused);
        assert_eq!(plain(0x1000, 0), refused);
        assert_eq!(plain(0x1000, u64::MAX), refused);
        asked(plain(!0xfff, 1));
        assert_eq!(begin(rule(VmType::Sev), false, 0x1000, 1, 0), Next::Tell(Answer::Rax(-1000)));
    }

    #[test]
    fn snp_and_tdx_take_three_values() {
        for vm_type in [VmType::SevSnp, VmType::Tdx] {
            let (request, _) = asked(begin(rule(vm_type), true, 0x1000, 1, ENCRYPTED));
            let retry = if vm_type == VmType::Tdx { Answer::Retry { gpa: 0x1000 } } else { Answer::Refused };
            assert_eq!(request.go_on(rule(vm_type), 0), Some(Next::Tell(Answer::Granted)));
            assert_eq!(request.go_on(rule(vm_type), 22), Some(Next::Tell(Answer::Refused)));
            assert_eq!(request.go_on(rule(vm_type), 11), Some(Next::Tell(retry)));
            for ret in [1, (-22i64) as u64, 12] {
                assert_eq!(request.go_on(rule(vm_type), ret), None);
            }
            for (enabled, gpa, pages) in [(false, 0, 1), (true, 1, 1), (true, 0, 0), (true, 0x1000, u64::MAX)] {
                assert_eq!(begin(rule(vm_type), enabled, gpa, pages, 0), Next::Tell(Answer::Refused));
            }
        }
    }

    #[test]
    fn tdx_asks_in_pieces_and_the_address_says_for_what() {
        let rule = rule(VmType::Tdx);
        for (bit, attributes) in [(SHARED_BIT, 0), (0, ENCRYPTED)] {
            let (first, arguments) = asked(begin(rule, true, bit | 0x1000, 1025, !attributes));
            assert_eq!(arguments, [0x1000, 512, attributes]);
            let (second, arguments) = asked(first.go_on(rule, 0).unwrap());
            assert_eq!(arguments, [0x20_1000, 512, attributes]);
            assert_eq!(second.go_on(rule, 11), Some(Next::Tell(Answer::Retry { gpa: bit | 0x20_1000 })));
            let (third, arguments) = asked(second.go_on(rule, 0).unwrap());
            assert_eq!(arguments, [0x40_1000, 1, attributes]);
            assert_eq!(third.go_on(rule, 0), Some(Next::Tell(Answer::Granted)));
        }
        let (only, arguments) = asked(begin(rule, true, 0, 512, 0));
        assert_eq!(arguments, [0, 512, ENCRYPTED]);
        assert_eq!(only.go_on(rule, 0), Some(Next::Tell(Answer::Granted)));
        assert_eq!(begin(rule, true, SHARED_BIT - 0x1000, 2, 0), Next::Tell(Answer::Refused));
    }
}
