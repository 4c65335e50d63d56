//! Which device computes, and what of it enters keys. Knows no kernel and no stage.
//!
//! The CUDA build is a separate binary, because candle binds CUDA when it links. A device that this binary cannot use is an
//! error, never a fallback.

use std::{fmt, str::FromStr};

/// A device as `--device` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The host's processor.
    Cpu,
    /// The CUDA device with this ordinal.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name is none that we know.
    #[error("unknown device `{0}`; use `auto`, `cpu` or `cuda:N`")]
    Unknown(String),
    /// The binary was built without CUDA.
    #[error(
        "`{0}` was asked for, and this binary was built without CUDA; build with `--features cuda`, or use `--device cpu`"
    )]
    NoCuda(Device),
    /// The driver refused.
    #[error("`{device}` cannot be used: {source}")]
    Driver {
        /// The device.
        device: Device,
        /// What candle or the driver said.
        source: candle_core::Error,
    },
}

impl FromStr for Device {
    type Err = DeviceError;

    /// Reads `cpu`, `cuda:N` or `auto`: the first CUDA device where this binary and this machine have one, else the CPU.
    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("auto", _) => Ok(Self::best()),
            (_, Some(Ok(ordinal))) => Self::Cuda(ordinal).built_in(),
            _ => Err(DeviceError::Unknown(name.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The crates whose arithmetic reaches results, with their versions; set by the build script from `Cargo.lock`.
const NUMERICS: &str = env!("MLA_RUN_NUMERICS");

impl Device {
    /// What enters the key of a per-device stage: the kind of device and the code that computes on it, never the ordinal.
    pub fn fingerprint(self) -> Result<String, DeviceError> {
        match self {
            Self::Cpu => Ok(format!("{} {NUMERICS}", isa())),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => {
                let (name, major, minor) = self.properties()?;
                Ok(format!("cuda {name} sm_{major}{minor} kernels {} {NUMERICS}", crate::device::KERNELS))
            }
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(DeviceError::NoCuda(self)),
        }
    }

    /// The same device for candle.
    pub fn candle(self) -> Result<candle_core::Device, DeviceError> {
        match self.built_in()? {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(ordinal) => candle_core::Device::new_cuda(ordinal)
                .map_err(|source| DeviceError::Driver { device: self, source }),
        }
    }

    /// The device, if this binary can drive it at all.
    fn built_in(self) -> Result<Self, DeviceError> {
        match self {
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NoCuda(self)),
            device => Ok(device),
        }
    }

    fn best() -> Self {
        if cfg!(feature = "cuda") && Self::Cuda(0).candle().is_ok() { Self::Cuda(0) } else { Self::Cpu }
    }
}

/// The digest of the kernels' sources and build flags; set by the build script.
#[cfg(feature = "cuda")]
const KERNELS: &str = env!("MLA_RUN_KERNELS");

#[cfg(feature = "cuda")]
impl Device {
    /// Name and compute capability.
    fn properties(self) -> Result<(String, i32, i32), DeviceError> {
        use candle_core::cuda_backend::WrapErr;

        let driver = |source| DeviceError::Driver { device: self, source };
        let device = self.candle()?;
        let cuda = device.as_cuda_device().map_err(driver)?;
        let stream = cuda.cuda_stream();
        let context = stream.context();
        let name = context.name().w().map_err(driver)?;
        let (major, minor) = context.compute_capability().w().map_err(driver)?;
        Ok((name.replace(' ', "-"), major, minor))
    }
}

/// The instruction set that the matrix code picks at run time, by the levels of the x86-64 ABI.
fn isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512vl") {
            return "x86-64-v4";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "x86-64-v3";
        }
    }
    std::env::consts::ARCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        assert_eq!("cpu".parse::<Device>().unwrap(), Device::Cpu);
        assert_eq!(Device::Cuda(1).to_string(), "cuda:1");
        for name in [
            "",
            "gpu",
            "cuda",
            "cuda:",
            "cuda:x",
            "CPU",
            " cpu",
            "cpu:0",
            "cuda:-1",
            "cuda:1 ",
            "cuda:18446744073709551616",
        ] {
            let error = name.parse::<Device>().unwrap_err().to_string();
            assert_eq!(error, format!("unknown device `{name}`; use `auto`, `cpu` or `cuda:N`"));
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_cuda_device_without_the_feature_is_an_error_not_a_fallback() {
        assert_eq!("auto".parse::<Device>().unwrap(), Device::Cpu);
        for error in [
            "cuda:0".parse::<Device>().map(|_| ()).unwrap_err(),
            Device::Cuda(0).candle().map(|_| ()).unwrap_err(),
            Device::Cuda(0).fingerprint().map(|_| ()).unwrap_err(),
        ] {
            assert!(matches!(error, DeviceError::NoCuda(Device::Cuda(0))), "{error}");
        }
    }

    #[test]
    fn a_fingerprint_is_one_line_of_words_and_the_same_every_time() {
        let fingerprint = Device::Cpu.fingerprint().unwrap();
        assert_eq!(Device::Cpu.fingerprint().unwrap(), fingerprint);
        assert!(fingerprint.starts_with(isa()) && !fingerprint.contains(['\n', '"']), "{fingerprint}");
    }

    #[test]
    fn the_fingerprint_names_the_crates_that_compute() {
        let fingerprint = Device::Cpu.fingerprint().unwrap();
        for part in ["candle-core-", "gemm-", "faer-"] {
            assert!(fingerprint.contains(part), "{fingerprint}");
        }
    }
}
