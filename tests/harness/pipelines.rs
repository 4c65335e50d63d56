//! Small pipelines of exec stages.

/// `source → upper → count`, `source → copy`; `source` reads `in/*.txt`.
pub(crate) const DIAMOND: &str = r#"
[vars]
word = "one"

[stage.source]
kind = "exec"
argv = ["sh", "-c", "cat in/*.txt > {out}/text; echo ${word} >> {out}/text"]
files = ["in/*.txt"]
outputs = ["text"]

[stage.upper]
kind = "exec"
argv = ["sh", "-c", "tr a-z A-Z < {in.text}/text > {out}/text"]
inputs = { text = "source" }
outputs = ["text"]

[stage.copy]
kind = "exec"
argv = ["cp", "{in.text}/text", "{out}/text"]
inputs = { text = "source" }
outputs = ["text"]

[stage.count]
kind = "exec"
argv = ["sh", "-c", "wc -c < {in.upper}/text > {out}/count; echo 12 >> {out}/count"]
inputs = { upper = "upper", copy = "copy" }
outputs = ["count"]
"#;
