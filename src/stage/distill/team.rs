//! Several processes that share the parts of a step: the one that trains, and members that compute sums for it. Knows no loss.
//!
//! A member is this program with the stage's own inputs. It is told a step on its standard input, finds the weights in a file, writes
//! its sums into files and says so on its standard output; it ends when its input does. What the trainer does with the sums is what it does
//! with its own, so that the bits are those of one process ([`super::share`]).

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::available_parallelism,
};

use candle_core::Var;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Distill,
    gradients::Gradients,
    share::{Step, Sum},
    state::Place,
    weights::Weights,
};
use crate::engine::action::{Cx, Failure, Files};

/// Why members could not help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TeamError {
    #[error("process {number} of {of}: {why}")]
    Member { number: usize, of: usize, why: String },
    #[error("files for other processes in {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// All that a member must know to begin.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Its number, from 1, and that of all processes.
    pub(crate) of: (usize, usize),
    pub(crate) settings: Value,
    pub(crate) inputs: BTreeMap<String, Files>,
    pub(crate) seed: u64,
    pub(crate) device: String,
}

/// A sum whose gradients lie in a file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Done {
    number: usize,
    /// The bits of the loss: JSON does not give every number back as it was.
    loss: u64,
    /// The variables that have a gradient.
    names: Vec<String>,
}

/// What a member says to a task.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done(Vec<Done>),
    Failed(String),
}

/// The members.
pub(crate) struct Team {
    folder: PathBuf,
    members: Vec<Member>,
}

struct Member {
    child: Child,
    tasks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Team {
    /// Starts all but the first of `settings.processes` processes; `None` where that is the only one.
    pub(crate) fn start(settings: &Distill, cx: &Cx<'_>) -> Result<Option<Self>, Failure> {
        if settings.processes == 1 {
            return Ok(None);
        }
        let folder = cx.scratch.join("team");
        let failed = |e| Failure::stage(TeamError::Io(folder.clone(), e));
        fs::create_dir_all(&folder).map_err(failed)?;
        let program = std::env::current_exe().map_err(failed)?;
        let mut team = Self { folder: folder.clone(), members: Vec::new() };
        for number in 1..settings.processes {
            let setup = Setup {
                of: (number, settings.processes),
                settings: serde_json::to_value(settings).map_err(Failure::stage)?,
                inputs: cx.inputs.clone(),
                seed: cx.seed,
                device: cx.device.clone(),
            };
            let path = folder.join(format!("member-{number}.json"));
            fs::write(&path, serde_json::to_vec(&setup).map_err(Failure::stage)?).map_err(failed)?;
            team.members.push(Member::start(settings, &program, &path).map_err(failed)?);
        }
        cx.progress.say(&format!("{} processes share the parts of a step", settings.processes));
        Ok(Some(team))
    }

    /// Processes, with the one that trains.
    pub(crate) fn processes(&self) -> usize {
        self.members.len() + 1
    }

    /// Asks every member for its sums of the step at `place`, for the weights as they are.
    pub(crate) fn ask(&mut self, place: Place, vars: &BTreeMap<String, Var>) -> Result<(), Failure> {
        let path = weights_file(&self.folder);
        let now = Weights::of(vars).map_err(Failure::stage)?;
        write(&path, now.0.values()).map_err(|e| Failure::stage(TeamError::Io(path.clone(), e)))?;
        let of = self.processes();
        for (i, member) in self.members.iter_mut().enumerate() {
            tell(&mut member.tasks, &place).map_err(|e| member.lost((i + 1, of), &e))?;
        }
        Ok(())
    }

    /// The sums of all members.
    pub(crate) fn collect(&mut self, vars: &BTreeMap<String, Var>) -> Result<BTreeMap<usize, Sum>, Failure> {
        let (of, mut sums) = (self.processes(), BTreeMap::new());
        for (i, member) in self.members.iter_mut().enumerate() {
            let number = i + 1;
            let answer = hear(&mut member.answers).map_err(|e| member.lost((number, of), &e))?;
            let done = match answer {
                Some(Answer::Done(done)) => done,
                Some(Answer::Failed(why)) => {
                    return Err(Failure::stage(TeamError::Member { number, of, why }));
                }
                None => {
                    return Err(member.lost((number, of), &io::Error::other("it ended without an answer")));
                }
            };
            for done in done {
                let path = sum_file(&self.folder, done.number);
                let failed = |e| Failure::stage(TeamError::Io(path.clone(), e));
                sums.insert(done.number, done.sum(&path, vars).map_err(failed)?);
            }
        }
        Ok(sums)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        for member in &mut self.members {
            // One that has ended already cannot be killed; either way nothing is left to wait for.
            drop(member.child.kill());
            drop(member.child.wait());
        }
    }
}

impl Member {
    fn start(settings: &Distill, program: &Path, setup: &Path) -> io::Result<Self> {
        let mut words = settings.launch.iter();
        let mut command = match words.next() {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        // Those on one machine share its cores.
        let threads = available_parallelism().map_or(1, usize::from) / settings.processes;
        command.env("RAYON_NUM_THREADS", threads.max(1).to_string());
        command.arg("member").arg(setup).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (tasks, answers) = (child.stdin.take(), child.stdout.take());
        let missing = || io::Error::other("a pipe is missing");
        Ok(Self {
            child,
            tasks: tasks.ok_or_else(missing)?,
            answers: BufReader::new(answers.ok_or_else(missing)?),
        })
    }

    /// What became of a member that cannot be reached.
    fn lost(&mut self, (number, of): (usize, usize), error: &io::Error) -> Failure {
        let status = self.child.try_wait().ok().flatten();
        let why = status.map_or_else(|| error.to_string(), |status| format!("{error} ({status})"));
        Failure::stage(TeamError::Member { number, of, why })
    }
}

impl Done {
    /// Writes the gradients of a sum, and says what there is.
    pub(crate) fn write(number: usize, sum: &Sum, folder: &Path) -> io::Result<Self> {
        let named = sum.gradients.named();
        write(&sum_file(folder, number), named.values())?;
        Ok(Self { number, loss: sum.loss.to_bits(), names: named.keys().cloned().collect() })
    }

    fn sum(&self, path: &Path, vars: &BTreeMap<String, Var>) -> io::Result<Sum> {
        let unknown = |name: &String| io::Error::other(format!("no variable is called `{name}`"));
        let sizes: Vec<usize> = self
            .names
            .iter()
            .map(|name| vars.get(name).map(|var| var.elem_count()).ok_or_else(|| unknown(name)))
            .collect::<io::Result<_>>()?;
        let named = self.names.iter().cloned().zip(read(path, &sizes)?).collect();
        Ok(Sum { loss: f64::from_bits(self.loss), gradients: Gradients::from_named(named) })
    }
}

/// Takes the trainer's weights.
pub(crate) fn take_weights(folder: &Path, vars: &BTreeMap<String, Var>) -> Result<(), Failure> {
    let sizes: Vec<usize> = vars.values().map(|var| var.elem_count()).collect();
    let path = weights_file(folder);
    let values = read(&path, &sizes).map_err(|e| Failure::stage(TeamError::Io(path.clone(), e)))?;
    Weights(vars.keys().cloned().zip(values).collect()).put(vars).map_err(Failure::stage)
}

/// The sums of a process, in files.
pub(crate) fn sums(
    step: &Step,
    of: (usize, usize),
    folder: &Path,
    sum: impl Fn(usize) -> Result<Sum, Failure>,
) -> Result<Vec<Done>, Failure> {
    let done = |number| {
        let failed = |e| Failure::stage(TeamError::Io(sum_file(folder, number), e));
        Done::write(number, &sum(number)?, folder).map_err(failed)
    };
    step.share(of).map(done).collect()
}

fn weights_file(folder: &Path) -> PathBuf {
    folder.join("weights.f32")
}

fn sum_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("sum-{number}.f32"))
}

/// Values one after the other, little-endian.
fn write<'a>(path: &Path, all: impl Iterator<Item = &'a Vec<f32>>) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    for value in all.flatten() {
        file.write_all(&value.to_le_bytes())?;
    }
    file.flush()
}

/// The values of a file that has so many of each.
fn read(path: &Path, sizes: &[usize]) -> io::Result<Vec<Vec<f32>>> {
    let bytes = fs::read(path)?;
    let expected = size_of::<f32>() * sizes.iter().sum::<usize>();
    if bytes.len() != expected {
        return Err(io::Error::other(format!("{} bytes, expected {expected}", bytes.len())));
    }
    let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(sizes.iter().map(|&n| values.by_ref().take(n).collect()).collect())
}

/// A line of JSON.
pub(crate) fn tell(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// The next line of JSON; `None` where there is no more.
pub(crate) fn hear<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{noise, var};

    #[test]
    fn a_sum_comes_back_from_its_file_with_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let vars: BTreeMap<String, Var> = [("a", &[2, 3][..]), ("b", &[4]), ("c", &[1])]
            .into_iter()
            .map(|(name, shape)| (name.to_owned(), var(1, shape, 1.0)))
            .collect();
        let named = BTreeMap::from([("a".to_owned(), noise(3, 6, 1.0)), ("c".to_owned(), noise(4, 1, 1.0))]);
        let sum = Sum { loss: 0.1 + 0.2, gradients: Gradients::from_named(named) };
        let done = Done::write(5, &sum, dir.path()).unwrap();
        let line = serde_json::to_string(&Answer::Done(vec![done])).unwrap();
        let Answer::Done(done) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        assert_eq!(done[0].sum(&sum_file(dir.path(), 5), &vars).unwrap(), sum);
        let other =
            BTreeMap::from([("a".to_owned(), var(1, &[2, 2], 1.0)), ("c".to_owned(), var(1, &[1], 1.0))]);
        let error = done[0].sum(&sum_file(dir.path(), 5), &other).unwrap_err().to_string();
        assert_eq!(error, "28 bytes, expected 20");
        let none = BTreeMap::new();
        let error = done[0].sum(&sum_file(dir.path(), 5), &none).unwrap_err().to_string();
        assert!(error.contains("`a`"), "{error}");
    }

    #[test]
    fn weights_and_lines_arrive_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let make = |seed| BTreeMap::from([("x".to_owned(), var(seed, &[3, 2], 1.0))]);
        let (here, there) = (make(1), make(2));
        write(&weights_file(dir.path()), Weights::of(&here).unwrap().0.values()).unwrap();
        take_weights(dir.path(), &there).unwrap();
        assert_eq!(Weights::of(&here).unwrap(), Weights::of(&there).unwrap());

        let place = Place { phase: 1, step: 7, ..Place::default() };
        let mut pipe = Vec::new();
        tell(&mut pipe, &place).unwrap();
        let mut from = &pipe[..];
        assert_eq!(hear::<Place>(&mut from).unwrap(), Some(place));
        assert_eq!(hear::<Place>(&mut from).unwrap(), None);
        assert!(hear::<Place>(&mut &b"{}\n"[..]).is_err());
    }
}
