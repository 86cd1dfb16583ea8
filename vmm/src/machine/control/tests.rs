use super::*;
use arch::x86_64::private_faults::ConversionKind;
use hypervisor::GpaRange;

/// A vCPU whose runs take until they are interrupted.
#[derive(Default)]
struct Sleeper(AtomicBool);

impl Interrupter for Sleeper {
    fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }
}

impl Sleeper {
    fn run(&self) {
        while !self.0.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    /// The life of a vCPU's thread.
    fn live(&self, control: &Control, id: u8) {
        control.enter(id);
        while let Order::Run { .. } = control.before_run(id) {
            self.run();
        }
        control.leave(id);
    }
}

fn sleepers(count: usize) -> (Vec<Arc<Sleeper>>, Control) {
    let sleepers: Vec<Arc<Sleeper>> = (0..count).map(|_| Arc::default()).collect();
    let interrupters = sleepers.iter().map(|sleeper| sleeper.clone() as Arc<dyn Interrupter>).collect();
    (sleepers, Control::new(interrupters, true))
}

fn inconsistent() -> Result<Stop> {
    let source = hypervisor::Error::Failed {
        operation: "undo",
        subject: "it".into(),
        source: std::io::Error::from_raw_os_error(libc::ENOMEM),
    };
    let range = GpaRange::new(0, 4096).unwrap();
    Err(ConversionError::Inconsistent { range, source }.into())
}

/// Ends, each worse than the one before.
fn ends() -> Vec<Result<Stop>> {
    vec![
        Err(ConversionError::Stopped.into()),
        Ok(Stop::PowerOff),
        Err(ConversionError::Refused { kind: ConversionKind::Host }.into()),
        inconsistent(),
    ]
}

#[test]
fn of_several_ends_the_worst_counts_and_of_equals_the_first() {
    for first in 0..ends().len() {
        for second in 0..ends().len() {
            let (_, control) = sleepers(1);
            control.end(ends().remove(first));
            control.end(ends().remove(second));
            let worst = format!("{:?}", ends()[first.max(second)]);
            assert_eq!(format!("{:?}", control.take_outcome()), worst, "{first} {second}");
        }
    }
    let (_, control) = sleepers(1);
    control.end(Ok(Stop::Reset));
    control.end(Ok(Stop::PowerOff));
    assert_eq!(control.take_outcome().unwrap(), Stop::Reset);
}

#[test]
fn no_interruption_is_lost() {
    crate::machine::signal::handle().unwrap();
    let (sleepers, control) = sleepers(3);
    std::thread::scope(|scope| {
        for (id, sleeper) in (0u8..).zip(&sleepers) {
            let control = &control;
            scope.spawn(move || sleeper.live(control, id));
        }
        for _ in 0..500 {
            // Each would wait for ever if one were lost.
            control.pause();
            control.wait_until_still().unwrap();
            control.resume();
        }
        control.end(Ok(Stop::Requested));
    });
    assert!(control.wait_until_still().is_err());
}

#[test]
fn processors_wait_for_the_launch_and_an_interrupt_comes_once() {
    let sleeper = || Arc::<Sleeper>::default() as Arc<dyn Interrupter>;
    let control = Control::new(vec![sleeper(), sleeper()], false);
    control.nmi().unwrap();
    assert_eq!(control.before_run(0), Order::Run { rested: false, nmi: true });
    assert_eq!(control.before_run(0), Order::Run { rested: false, nmi: false });
    std::thread::scope(|scope| {
        let other = scope.spawn(|| control.before_run(1));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!other.is_finished());
        control.launch();
        assert_eq!(other.join().unwrap(), Order::Run { rested: false, nmi: true });
    });
}

#[test]
fn a_rest_inside_an_exit_is_told_to_the_next_run() {
    let (_, control) = sleepers(1);
    assert_eq!(control.before_run(0), Order::Run { rested: false, nmi: false });
    control.pause();
    std::thread::scope(|scope| {
        let exit = scope.spawn(|| control.rest(0));
        control.wait_until_still().unwrap();
        control.nmi().unwrap();
        control.resume();
        assert!(exit.join().unwrap());
    });
    assert_eq!(control.before_run(0), Order::Run { rested: true, nmi: true });
    control.end(Ok(Stop::PowerOff));
    assert!(!control.rest(0));
}

#[test]
fn who_rests_sleeps() {
    crate::machine::signal::handle().unwrap();
    // A pause makes the first rest; the others have not been launched, and rest from the start.
    let sleeper = || Arc::<Sleeper>::default();
    let sleepers = [sleeper(), sleeper(), sleeper()];
    let interrupters = sleepers.iter().map(|sleeper| sleeper.clone() as Arc<dyn Interrupter>).collect();
    let control = Control::new(interrupters, false);
    let mut counts = Vec::new();
    std::thread::scope(|scope| {
        for (id, sleeper) in (0u8..).zip(&sleepers) {
            let control = &control;
            scope.spawn(move || sleeper.live(control, id));
        }
        let main = scope.spawn(|| while !control.wait_for_end(None) {});
        let awakenings = || control.awakenings.load(Ordering::Relaxed);
        for launched in [false, true] {
            std::thread::sleep(Duration::from_millis(50));
            control.pause();
            control.wait_until_still().unwrap();
            std::thread::sleep(Duration::from_millis(100));
            counts.push((launched, awakenings()));
            control.launch();
            control.resume();
        }
        control.end(Ok(Stop::Requested));
        main.join().unwrap();
    });
    // The kernel may wake somebody for no reason now and then. Who wakes others in turn does so thousands of times.
    assert!(counts.iter().all(|(_, count)| *count < 100), "{counts:?}");
}
