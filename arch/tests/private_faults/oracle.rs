//! What every function of `private_faults` has to answer, said a second time in arithmetic that can't overflow. Each check
//! takes any bits, panics where the answer is another one, and returns how many requests came of it. The fuzz target
//! includes this file too.

use arch::x86_64::MemoryLayout;
use arch::x86_64::map::{HIGH_RAM_START, LOW_END, LOW_RAM_LIMIT};
use arch::x86_64::private_faults::snp::PageStateChange;
use arch::x86_64::private_faults::tdx::{self, AddressWidth, MapGpa};
use arch::x86_64::private_faults::{
    ConversionKind, ConversionRequest, Origin, PrivacyBit, Refusal, from_map_gpa_range, from_memory_fault,
    from_memory_fault_flags, from_tagged_access, snp,
};
use hypervisor::{MemoryFault, PAGE_SIZE, PageState, VmType};

const PAGE: u128 = PAGE_SIZE as u128;
/// Bits 51:12 of an address.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// KVM_HC_MAP_GPA_RANGE.
pub fn map_gpa_range(layout: &MemoryLayout, gpa: u64, pages: u64, attributes: u64) -> usize {
    let answer = from_map_gpa_range(layout, gpa, pages, attributes);
    if attributes >= 32 || attributes % 16 > 2 {
        assert_eq!(answer, Err(Refusal::UnknownBits { attributes }));
    } else {
        let asked = Asked::new(gpa.into(), u128::from(pages) * PAGE, attributes >= 16);
        asked.check(layout, answer, Origin::MapGpaRange);
    }
    if let Err(refusal) = answer {
        for vm_type in VmType::ALL {
            let told = refusal.hypercall_return(vm_type) as i64;
            assert_eq!(told, if matches!(vm_type, VmType::SevSnp | VmType::Tdx) { 22 } else { -22 });
        }
    }
    requests(answer)
}

/// TDX's MapGPA. `resume` is any address from which the guest might be told to go on.
pub fn tdx_map_gpa(layout: &MemoryLayout, width: AddressWidth, r12: u64, r13: u64, resume: u64) -> usize {
    let call = MapGpa::new(width, r12, r13);
    let answer = call.request(layout);
    let (start, end) = (u128::from(r12), u128::from(r12) + u128::from(r13));
    let half = 1u128 << (width.bits() - 1);
    let private = start < half;
    let beyond = r13 == 0 || end > 2 * half || private && end > half;
    if beyond {
        assert_eq!(answer, Err(Refusal::BeyondAddresses { start: r12, size: r13, bits: width.bits() }));
    } else {
        let own = if private { start } else { start - half };
        Asked::new(own, r13.into(), private).check(layout, answer, Origin::TdxMapGpa);
    }
    if let Err(refusal) = answer {
        // KVM refuses an address before it looks at its alignment; Umbra, what does not convert after it.
        let unaligned = !beyond && !(r12 | r13).is_multiple_of(PAGE_SIZE);
        let status = if unaligned { tdx::ALIGN_ERROR } else { tdx::INVALID_OPERAND };
        assert_eq!(call.refused(&refusal), tdx::Answer { r10: status, r11: r12 });
    }
    for (told, status) in [(call.retry_at(resume), 1), (call.failed_at(resume), 1 << 63)] {
        assert_eq!(told.r10, status);
        assert!(told.r11 == r12 || (told.r11 > r12 && u128::from(told.r11) < end), "{told:x?}");
    }
    requests(answer)
}

/// SEV-SNP's page state change by the GHCB MSR.
pub fn snp_msr(layout: &MemoryLayout, value: u64) -> usize {
    let answer = snp::from_msr(layout, value);
    let operation = value >> 52;
    if (operation == 1 || operation == 2) && value % PAGE_SIZE == 0x014 {
        Asked::new((value & FRAME).into(), PAGE, operation == 1).check(layout, answer, Origin::SnpPageState);
    } else {
        assert_eq!(answer, Err(Refusal::NoPageStateChange { value }));
    }
    if let Err(refusal) = answer {
        assert_eq!(refusal.snp_msr(), 1 << 63 | 0x015);
    }
    requests(answer)
}

/// KVM_EXIT_MEMORY_FAULT.
pub fn memory_fault(layout: &MemoryLayout, flags: u64, gpa: u64, size: u64) -> usize {
    let answer = from_memory_fault_flags(layout, flags, gpa, size);
    if flags != 0 && flags != 8 {
        assert_eq!(answer, Err(Refusal::UnknownFlags { flags }));
        return 0;
    }
    let private = flags == 8;
    assert_eq!(answer, from_memory_fault(layout, MemoryFault { gpa, size, private }));
    let one_alias = layout.ranges().iter().all(|ram| ram.aliases.len() == 1);
    let start = u128::from(gpa) / PAGE * PAGE;
    let end = (u128::from(gpa) + u128::from(size)).div_ceil(PAGE) * PAGE;
    // With `software`, memory below the first boundary has one state for good, and so has the private alias.
    let follows = layout.converts() && (one_alias || gpa >= LOW_END);
    let resolves = size > 0 && follows && ram_bytes(layout, start, end) == end - start;
    assert_eq!(answer.is_ok(), resolves, "{answer:?}");
    if let Ok(request) = answer {
        assert_eq!((u128::from(request.range.start()), u128::from(request.range.end())), (start, end));
        // The shared alias of `software` has shared memory only.
        assert_eq!(request.to, state(private && one_alias));
        assert_eq!((request.kind, request.origin), (ConversionKind::Implicit, Origin::MemoryFault));
    }
    requests(answer.map(Some))
}

/// An access to an address that carries its privacy bit.
pub fn tagged_access(layout: &MemoryLayout, bit: PrivacyBit, gpa: u64, size: u64) -> usize {
    let (own, to) = bit.split(gpa);
    assert_eq!(bit.join(own, to), gpa);
    assert_eq!(bit.split(bit.join(gpa, to.other())), (own, to.other()));
    let answer = from_tagged_access(layout, bit, gpa, size);
    assert_eq!(answer, from_memory_fault(layout, MemoryFault { gpa: own, size, private: to == PageState::Private }));
    requests(answer.map(Some))
}

/// SEV-SNP's buffer of page state changes, worked off as far as it goes, but for at most `budget` batches.
pub fn snp_buffer(layout: &MemoryLayout, header: u64, entries: &[u64], budget: usize) -> usize {
    let (current, last) = (header & 0xffff, header >> 16 & 0xffff);
    let buffer = PageStateChange::new(header, entries);
    let fits = header >> 32 == 0 && last < 253 && last < entries.len() as u64;
    let Ok(mut buffer) = buffer else {
        assert!(!fits);
        assert_eq!(buffer, Err(Refusal::BadHeader { header }));
        return 0;
    };
    assert!(fits);
    let mut covered = Vec::new();
    let mut result = Ok(true);
    for _ in 0..budget.min(entries.len() + 1) {
        match buffer.next_batch(layout) {
            Ok(Some(batch)) => {
                covered.extend(batch.request.map(|request| {
                    assert_eq!((request.kind, request.origin), (ConversionKind::Explicit, Origin::SnpPageState));
                    (request.range.start(), request.range.end(), request.to)
                }));
                buffer.complete(&batch);
                result = Ok(false);
            }
            Ok(None) => result = Ok(true),
            Err(refusal) => result = Err(refusal),
        }
    }
    let now = buffer.header() & 0xffff;
    assert_eq!(buffer.header() & !0xffff, last << 16);
    assert!(now >= current && (now <= last + 1 || now == current));
    match result {
        Ok(true) => assert!(now > last || budget == 0),
        Ok(false) => assert!(budget <= entries.len(), "more batches than entries"),
        Err(refusal) => {
            assert!(now <= last);
            let bad = matches!(refusal, Refusal::BadEntry { index, .. } if u64::from(index) == now);
            assert!(bad || matches!(refusal, Refusal::NotRam { .. } | Refusal::NoConversions), "{refusal:?}");
            assert_eq!(refusal.snp_exit_info_2(), if bad { 1 << 32 | 2 } else { 0x100 << 32 });
        }
    }
    // What the entries asked for that are marked as done now, and were not before.
    let mut asked = Vec::new();
    for (index, (before, after)) in (0..).zip(entries.iter().zip(buffer.entries())) {
        let pages = if before >> 56 & 1 == 0 { 1 } else { 512 };
        if !(current..now).contains(&index) {
            assert_eq!(after, before);
            continue;
        }
        assert_eq!(*after, before & !0xfff | pages);
        let (start, end) = ((before & FRAME) + (before & 0xfff) * PAGE_SIZE, (before & FRAME) + pages * PAGE_SIZE);
        let operation = before >> 52 & 0xf;
        if operation <= 2 && start < end && ram_bytes(layout, start.into(), end.into()) > 0 {
            asked.push((start, end, state(operation == 1)));
        }
    }
    // Merged or not, it is the same pages in the same order.
    let requests = covered.len();
    assert_eq!(joined(covered), joined(asked));
    requests
}

fn requests(answer: Result<Option<ConversionRequest>, Refusal>) -> usize {
    usize::from(matches!(answer, Ok(Some(_))))
}

/// What somebody announces.
struct Asked {
    start: u128,
    size: u128,
    to: PageState,
}

impl Asked {
    fn new(start: u128, size: u128, private: bool) -> Self {
        Self { start, size, to: state(private) }
    }

    /// Checks an answer, and that a request is exactly what was asked for.
    fn check(&self, layout: &MemoryLayout, answer: Result<Option<ConversionRequest>, Refusal>, origin: Origin) {
        let expected = self.expected(layout);
        assert_eq!(answer.map(|request| request.is_some()).map_err(drop), expected, "{answer:?}");
        if let Ok(Some(request)) = answer {
            assert_eq!(u128::from(request.range.start()), self.start);
            assert_eq!(u128::from(request.range.len()), self.size);
            assert_eq!((request.to, request.kind, request.origin), (self.to, ConversionKind::Explicit, origin));
        }
    }

    /// Whether it is a request, or needs nothing done; or is refused.
    fn expected(&self, layout: &MemoryLayout) -> Result<bool, ()> {
        let end = self.start + self.size;
        // Beyond 2^63 there are no addresses.
        let pages =
            self.size > 0 && self.start.is_multiple_of(PAGE) && self.size.is_multiple_of(PAGE) && end <= 1 << 63;
        match ram_bytes(layout, self.start, end) {
            ram if pages && layout.converts() && ram == self.size => Ok(true),
            0 if pages && layout.converts() && self.to == PageState::Shared => Ok(false),
            _ => Err(()),
        }
    }
}

fn state(private: bool) -> PageState {
    if private { PageState::Private } else { PageState::Shared }
}

/// How many of the bytes `start..end` are RAM.
fn ram_bytes(layout: &MemoryLayout, start: u128, end: u128) -> u128 {
    let common = |from: u64, to: u64| end.min(to.into()).saturating_sub(start.max(from.into()));
    let low = layout.size().min(LOW_RAM_LIMIT);
    common(0, low) + common(HIGH_RAM_START, HIGH_RAM_START + (layout.size() - low))
}

/// Joins ranges that follow on each other and are of one state.
fn joined(ranges: Vec<(u64, u64, PageState)>) -> Vec<(u64, u64, PageState)> {
    let mut joined: Vec<(u64, u64, PageState)> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if (last.1, last.2) == (range.0, range.2) => last.1 = range.1,
            _ => joined.push(range),
        }
    }
    joined
}
