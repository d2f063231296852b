//! The rules that need no stack, on bit masks, written once for all instruction sets.
//!
//! The rules are a macro, for two reasons. A function that is not inlined into a function with a
//! target feature is compiled without that feature. A function that is generic over the instruction
//! set cannot have a target feature.
//!
//! The module that uses the macro defines `Lanes`, a register that holds the masks of `LANES`
//! blocks, one in each lane of 64 bits. It also defines these operations, in which all masks of a
//! register count as one long number. The caller passes the carry of the preceding blocks; the
//! operation replaces it by the carry for the next blocks.
//!
//! - `later` moves each mark `BYTES` bytes further in the text. `before` is the register of the
//!   preceding blocks; `UNSEEN` must be 64 - `BYTES`.
//! - `add` returns a sum. Its carry is 0 or 1.
//! - `parity` sets each bit that has an odd number of 1 bits up to and including its position. Its
//!   carry is 1 if the earlier blocks have an odd number of them.
//! - `same` sets bit i if the lanes i of two registers are equal.
//! - `compare` writes the masks of `groups` to `blocks`, beginning at the group `first`, and
//!   returns which unusual bytes occur.

macro_rules! rules {
    ($($features:literal)?) => {
        /// Runs the scanner over one whole body, in chunks of `BYTES` bytes. Returns `true` if the
        /// body is certainly valid, and `false` if it is not recognised.
        $(#[target_feature(enable = $features)])?
        pub(super) fn run<const BYTES: usize>(pass: &mut Pass<'_>) -> bool {
            const { assert!(BYTES <= CHUNK && BYTES.is_multiple_of(LANES * BLOCK)) }
            let body = pass.body;
            let mut rules = Rules::new();
            let mut at = pass.start;
            while at < body.len() {
                let text = &body[at..body.len().min(at + BYTES)];
                let (groups, rest) = text.as_chunks::<{ LANES * BLOCK }>();
                let mut last = [b' '; LANES * BLOCK];
                last[..rest.len()].copy_from_slice(rest);
                let last = if rest.is_empty() { &[][..] } else { &[last] };
                let blocks = (groups.len() + last.len()) * LANES;

                let seen = compare(groups, &mut pass.space.blocks, 0);
                let seen_last = compare(last, &mut pass.space.blocks, groups.len());
                pass.has_high |= seen.high | seen_last.high;
                if seen.control | seen_last.control {
                    return false;
                }
                let backslashes = backslashes(&pass.space.blocks.backslash, blocks);
                let escaped = pass.escaped_quotes(backslashes, blocks);
                let Some(used) = rules.hold(pass.space, blocks, text.len()) else {
                    return false;
                };
                if !pass.one_by_one(at, &Used { escaped, ..used }) {
                    return false;
                }
                at += text.len();
            }
            rules.in_string == 0 && pass.is_whole()
        }

        $(#[target_feature(enable = $features)])?
        fn not(a: Lanes) -> Lanes {
            xor(a, splat(u64::MAX))
        }

        /// Returns a number in which bit i is 1 if block i, one of the first `blocks`, has a
        /// backslash.
        $(#[target_feature(enable = $features)])?
        fn backslashes(masks: &[u64; BLOCKS], blocks: usize) -> u64 {
            let groups = masks.as_chunks().0.iter().take(blocks / LANES).enumerate();
            groups.fold(0, |used, (group, masks)| used | used_by(load(masks), group))
        }

        /// Returns a number in which bit i is 1 if block i is in this group and its mask is not 0.
        $(#[target_feature(enable = $features)])?
        fn used_by(masks: Lanes, group: usize) -> u64 {
            u64::from(same(masks, splat(0)) ^ ALL) << (group * LANES)
        }

        /// The value of `same` for two equal registers.
        const ALL: u32 = (1 << LANES) - 1;

        /// The state that one step leaves for the next step: carries of additions, and masks whose
        /// last bits the next step needs. Each step checks as many blocks as a register has lanes.
        struct Rules {
            /// 1 if the blocks so far end inside of a string.
            in_string: u32,
            /// 1 if the blocks so far end inside of a string that is a value in an object.
            value: u32,
            /// 1 if the text since the last bracket has something that is not valid in an object.
            bad_in_object: u32,
            /// 1 if the text since the last bracket has a colon, which is not valid in an array.
            bad_in_array: u32,
            /// 1 if the text since the last bracket has a key that may be `kind` or `apiVersion`.
            named: u32,
            /// The commas, colons and opening brackets in the blocks of the last step.
            before_token: Lanes,
            open: Lanes,
            colon: Lanes,
            scalar: Lanes,
            string_start: Lanes,
            n: Lanes,
            key_end: Lanes,
        }

        impl Rules {
            /// The state for the beginning of a body. The byte before the array of events counts as
            /// a colon, because the array is the value of the member `items`.
            $(#[target_feature(enable = $features)])?
            fn new() -> Self {
                let (none, last_byte) = (splat(0), splat(1 << 63));
                Self {
                    in_string: 0,
                    value: 0,
                    bad_in_object: 0,
                    bad_in_array: 0,
                    named: 0,
                    before_token: last_byte,
                    open: none,
                    colon: last_byte,
                    scalar: none,
                    string_start: none,
                    n: none,
                    key_end: none,
                }
            }

            /// Checks which bytes follow each other in the first `blocks` blocks of a chunk; bytes
            /// after the first `length` are padding. Writes the masks of brackets, numbers and
            /// literals to `space`, and returns the blocks with them. `None` if the text breaks a
            /// rule.
            $(#[target_feature(enable = $features)])?
            fn hold(&mut self, space: &mut Space, blocks: usize, length: usize) -> Option<Used> {
                let (mut used, mut doubts) = (Used::default(), splat(0));
                for group in 0..(blocks / LANES).min(BLOCKS / LANES) {
                    let step = self.outside_strings(space, group, length);
                    let of = &space.blocks;
                    let (wrong_order, scalar_start) = self.order(&step);
                    let n = load(&of.n.as_chunks().0[group]);
                    let backslash = load(&of.backslash.as_chunks().0[group]);
                    let keys = self.keys(&step, scalar_start, n, backslash);
                    let curly = load(&of.curly.as_chunks().0[group]);
                    let stretches = self.stretches(&step, &keys, curly);
                    doubts = or(doubts, or(wrong_order, stretches.bad));

                    used.bracket |= used_by(stretches.bracket, group);
                    used.scalar_start |= used_by(scalar_start, group);
                    store(stretches.bracket, &mut space.bracket.as_chunks_mut().0[group]);
                    store(stretches.is_object, &mut space.is_object.as_chunks_mut().0[group]);
                    store(stretches.named, &mut space.named.as_chunks_mut().0[group]);
                    store(scalar_start, &mut space.scalar_start.as_chunks_mut().0[group]);
                }
                is_zero(doubts).then_some(used)
            }

            /// Returns the bytes of one group of blocks that matter outside of strings.
            $(#[target_feature(enable = $features)])?
            #[inline]
            fn outside_strings(&mut self, space: &mut Space, group: usize, length: usize) -> Step {
                let Space { blocks: of, padding: ends, .. } = space;
                let quote = load(&of.quote.as_chunks().0[group]);
                let mut in_string = parity(quote, &mut self.in_string);
                if length < (group + 1) * LANES * BLOCK {
                    // Padding counts as inside of a string, so that no rule looks at it.
                    in_string = or(in_string, load(&padding(length, ends).as_chunks().0[group]));
                }
                Step {
                    quote,
                    in_string,
                    comma: and_not(load(&of.comma.as_chunks().0[group]), in_string),
                    colon: and_not(load(&of.colon.as_chunks().0[group]), in_string),
                    open: and_not(load(&of.open.as_chunks().0[group]), in_string),
                    close: and_not(load(&of.close.as_chunks().0[group]), in_string),
                    string_start: and(quote, in_string),
                }
            }

            /// Checks that a token begins after each comma, colon and opening bracket, and nowhere
            /// else; an opening bracket may be closed instead. Returns a mask of the faults, and a
            /// mask of the first bytes of numbers and literals.
            $(#[target_feature(enable = $features)])?
            #[inline]
            fn order(&mut self, step: &Step) -> (Lanes, Lanes) {
                let Step { quote, in_string, comma, colon, open, close, string_start } = *step;
                let before_token = or(or(comma, colon), open);
                let scalar = not(or(or(in_string, quote), or(before_token, close)));
                let scalar_start = and_not(scalar, later::<1, 63>(scalar, self.scalar));
                let token = or(or(string_start, scalar_start), open);
                let closed_at_once = and(close, later::<1, 63>(open, self.open));
                let after = later::<1, 63>(before_token, self.before_token);
                self.before_token = before_token;
                self.open = open;
                self.scalar = scalar;
                (xor(after, or(token, closed_at_once)), scalar_start)
            }

            /// Finds the keys of objects. `n` marks the letters `n`.
            $(#[target_feature(enable = $features)])?
            #[inline]
            fn keys(
                &mut self,
                step: &Step,
                scalar_start: Lanes,
                n: Lanes,
                backslash: Lanes,
            ) -> Keys {
                let Step { quote, in_string, colon, open, string_start, .. } = *step;
                // A string after a colon is a value. The addition clears the bits of such a string
                // and sets the bit of its closing quote; other strings keep their bits. In an
                // object, every other string is a key.
                let after_colon = later::<1, 63>(colon, self.colon);
                let sum = add(in_string, and(string_start, after_colon), &mut self.value);
                let in_key = and(in_string, sum);
                let key_end = and_not(and_not(quote, in_string), sum);
                let after_key = later::<1, 63>(key_end, self.key_end);
                let no_member = and_not(or(open, scalar_start), after_colon);
                let bad_in_object = or(xor(after_key, colon), no_member);
                // A key may be "kind" or "apiVersion" if it has 4 or 10 bytes, and an `n` at the
                // right place. A key with an escape may be one of the two as well.
                let four = later::<5, 59>(string_start, self.string_start);
                let ten = later::<11, 53>(string_start, self.string_start);
                let (third, last) = (later::<2, 62>(n, self.n), later::<1, 63>(n, self.n));
                let name_like = and(key_end, or(and(four, third), and(ten, last)));
                let named = or(name_like, and(in_key, backslash));
                self.colon = colon;
                self.string_start = string_start;
                self.n = n;
                self.key_end = key_end;
                Keys { after_colon, bad_in_object, named }
            }

            /// Judges each stretch. An addition carries a bit that is set in a stretch to the
            /// bracket at its end. A closing bracket shows by itself if its stretch is in an object
            /// or an array. The stretch before an opening bracket is in an object if a colon
            /// precedes the bracket, and in an array otherwise.
            $(#[target_feature(enable = $features)])?
            #[inline]
            fn stretches(&mut self, step: &Step, keys: &Keys, curly: Lanes) -> Stretches {
                let Step { colon, open, close, .. } = *step;
                let Keys { after_colon, bad_in_object, named } = *keys;
                let bracket = or(open, close);
                let between = not(bracket);
                let arrived = add(between, and(bad_in_object, between), &mut self.bad_in_object);
                let bad_in_object = or(bad_in_object, arrived);
                let bad_in_array = add(between, colon, &mut self.bad_in_array);
                let named = add(between, named, &mut self.named);
                let is_object = or(and(close, curly), and(open, after_colon));
                let bad = or(and(bad_in_object, is_object), and_not(bad_in_array, is_object));
                Stretches { bracket, is_object, named, bad: and(bad, bracket) }
            }
        }

        /// The bytes of one group of blocks; commas, colons and brackets only outside of strings.
        #[derive(Clone, Copy)]
        struct Step {
            quote: Lanes,
            /// From the opening quote of a string to the byte before its closing quote.
            in_string: Lanes,
            comma: Lanes,
            colon: Lanes,
            open: Lanes,
            close: Lanes,
            string_start: Lanes,
        }

        #[derive(Clone, Copy)]
        struct Keys {
            after_colon: Lanes,
            /// The bytes that are not valid in an object.
            bad_in_object: Lanes,
            /// The keys that may be `kind` or `apiVersion`.
            named: Lanes,
        }

        #[derive(Clone, Copy)]
        struct Stretches {
            bracket: Lanes,
            /// The brackets whose stretch is in an object.
            is_object: Lanes,
            /// The brackets whose stretch has a key that may be `kind` or `apiVersion`.
            named: Lanes,
            /// The brackets whose stretch is not valid.
            bad: Lanes,
        }
    };
}
pub(super) use rules;
