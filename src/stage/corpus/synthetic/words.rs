//! Closed sets of words. Knows no sentence; a set's size is the number of answers among which a reader must choose.
//!
//! Every word is letters only, so that with its leading space it can become one token.

/// Proper names, the keys of the prose. One name carries one fact of a document.
pub(super) const NAMES: [&str; 64] = [
    "Ada", "Alba", "Anton", "Arno", "Bela", "Bruno", "Cara", "Clara", "Cyril", "Dora", "Edda", "Elin",
    "Emil", "Enzo", "Erna", "Felix", "Fiona", "Frida", "Gerda", "Gus", "Hanna", "Hugo", "Ida", "Igor",
    "Ines", "Iris", "Ivo", "Jonas", "Jules", "Karl", "Kira", "Lars", "Lena", "Leo", "Lina", "Lotte", "Luca",
    "Magda", "Marta", "Mira", "Nadia", "Nico", "Nora", "Olga", "Oscar", "Otto", "Paula", "Petra", "Quinn",
    "Rita", "Romy", "Rosa", "Selma", "Sven", "Tara", "Theo", "Tilda", "Udo", "Ursa", "Vera", "Viktor",
    "Wanda", "Yara", "Zeno",
];

/// Colours, values of the prose.
pub(super) const COLOURS: [&str; 16] = [
    "amber", "azure", "black", "brown", "crimson", "golden", "green", "indigo", "ivory", "jade", "orange",
    "purple", "scarlet", "teal", "violet", "white",
];

/// Offices, values of the prose.
pub(super) const ROLES: [&str; 16] = [
    "abbot", "baker", "captain", "carver", "clerk", "cook", "doctor", "guard", "hunter", "judge", "mayor",
    "painter", "pilot", "singer", "smith", "teacher",
];

/// Gifts, values of the prose.
pub(super) const GIFTS: [&str; 16] = [
    "apples", "barley", "bread", "butter", "candles", "cheese", "copper", "flour", "honey", "linen", "paper",
    "pepper", "salt", "silver", "wine", "wool",
];

/// Names of variables, the keys of the programs.
pub(super) const VARIABLES: [&str; 40] = [
    "anchor", "axle", "badge", "barrel", "basket", "bolt", "bucket", "cable", "camera", "chain", "cog",
    "drill", "engine", "filter", "flange", "gear", "handle", "hinge", "hook", "lamp", "latch", "lever",
    "magnet", "meter", "motor", "needle", "nozzle", "pedal", "piston", "plug", "pump", "rotor", "sensor",
    "spring", "switch", "tank", "timer", "valve", "wheel", "winch",
];

/// Symbols, values of the programs.
pub(super) const ATOMS: [&str; 16] = [
    "broken", "busy", "cold", "dry", "empty", "full", "hot", "idle", "locked", "loose", "new", "old", "open",
    "ready", "shut", "wet",
];

/// Decimal digits, values of the programs and of the mathematics.
pub(super) const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Names of quantities, the keys of the mathematics.
pub(super) const QUANTITIES: [&str; 36] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "aleph",
    "beth", "gimel", "daleth", "zayin", "teth", "yodh", "kaph", "lamedh", "mem", "nun", "samekh",
];

/// A setting of the prose: what its filler sentences speak of.
pub(super) struct World {
    /// The place.
    pub place: &'static str,
    /// Who passes by.
    pub folk: [&'static str; 4],
    /// What lies about.
    pub things: [&'static str; 4],
    /// What they do with it.
    pub deeds: [&'static str; 4],
    /// What the weather does.
    pub weather: [&'static str; 4],
}

/// The settings. A document has one, so the documents of one setting resemble each other.
pub(super) const WORLDS: [World; 6] = [
    World {
        place: "harbour",
        folk: ["sailor", "fisher", "porter", "diver"],
        things: ["nets", "ropes", "sails", "crates"],
        deeds: ["mended", "carried", "counted", "dried"],
        weather: ["fog", "wind", "tide", "rain"],
    },
    World {
        place: "village",
        folk: ["farmer", "shepherd", "miller", "widow"],
        things: ["sheep", "sacks", "hens", "carts"],
        deeds: ["fed", "sold", "counted", "washed"],
        weather: ["frost", "rain", "heat", "wind"],
    },
    World {
        place: "castle",
        folk: ["knight", "page", "jester", "squire"],
        things: ["swords", "banners", "torches", "shields"],
        deeds: ["cleaned", "raised", "hid", "carried"],
        weather: ["snow", "storm", "fog", "night"],
    },
    World {
        place: "desert",
        folk: ["trader", "nomad", "scout", "pilgrim"],
        things: ["tents", "camels", "maps", "jars"],
        deeds: ["packed", "led", "sold", "hid"],
        weather: ["dust", "heat", "night", "wind"],
    },
    World {
        place: "forest",
        folk: ["ranger", "hermit", "trapper", "woodman"],
        things: ["logs", "traps", "roots", "bows"],
        deeds: ["stacked", "gathered", "burned", "dried"],
        weather: ["snow", "rain", "frost", "dusk"],
    },
    World {
        place: "city",
        folk: ["merchant", "beggar", "student", "printer"],
        things: ["books", "coins", "letters", "carts"],
        deeds: ["traded", "counted", "lost", "washed"],
        weather: ["smoke", "rain", "dusk", "storm"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_occurs_once_in_its_set_and_has_letters_only() {
        let sets: [&[&str]; 7] = [&NAMES, &COLOURS, &ROLES, &GIFTS, &VARIABLES, &ATOMS, &QUANTITIES];
        for set in sets {
            let unique: std::collections::BTreeSet<_> = set.iter().collect();
            assert_eq!(unique.len(), set.len(), "{set:?}");
            assert!(set.iter().all(|word| word.bytes().all(|b| b.is_ascii_alphabetic())), "{set:?}");
        }
    }
}
