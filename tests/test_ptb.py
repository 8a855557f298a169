"""The PTB tokenizer against the official one's tokens, on examples of each rule, on odd input."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metrics import ptb

# On a busy machine a slow example is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)


def lexed(text):
    return " ".join(token for piece in ptb._pieces(text) for token in ptb.lex(piece))


@pytest.mark.parametrize("kind, count", [
    ("adv", 429), pytest.param("ref", 8933, marks=pytest.mark.long)])
def test_tokens_equal_the_official_ones(kind, count, shared):
    """Those of all references, and of strings made to find mistakes, each lexed alone."""
    with open(shared / "metrics" / "ptb_tokens.tsv", encoding="utf-8", newline="\n") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    rows = [(json.loads(raw), lower, kept) for of, raw, lower, kept in rows if of == kind]
    assert len(rows) == count
    ours = [(raw, lexed(raw), *ptb.tokenize([raw])) for raw, _, _ in rows]
    assert [one for one, row in zip(ours, rows) if one != row] == []


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("", ""),
        (" \t\xa0\u2003\u200b\ufeff\x00\x1f\x7f 😀 ", ""),
        ("C++ and F# cannot, I'm gonna", "c++ and f# can not , i 'm gon na"),
        ("; 'Tis lemme", "; 't is lem me"),
        ("It isn't his; they'll can't", "it is n't his ; they 'll ca n't"),
        ("DON'T I've I've", "do n't i 've i ` ve"),
        ("O'Brien's rock 'n' roll", "o'brien 's rock 'n' roll"),
        ("c'mon y'all o'clock", "c'mon y' all o'clock"),
        ("<a href='x y'>It</a> x<y <br/>", "<a\xa0href='x\xa0y'> it </a> x < y <br/>"),
        ("AT&amp;T &lt;x&gt; a &nbsp; b &amp;", "at&t < x > a b &"),
        ("caf&eacute; &HT;", "caf&eacute; &ht;"),
        ("a – b — c -- d --- e ----- f", "a -- b -- c -- d -- e ----- f"),
        ("Go to https://x.org/a?b=c. www.x.co.uk,", "go to https://x.org/a?b=c . www.x.co.uk ,"),
        ("x.com", "x.com"),
        ("me@x.org @me #tag # 1", "me@x.org @me #tag # 1"),
        ("£20-25 $5 US$5 €5 5¢ ¥5", "# 20-25 $ 5 us$ 5 $ 5 5 cents ¥ 5"),
        ("1 1/2 ½ 3,000 12:30 .5 -5", "1\xa01/2 1/2 3,000 12:30 .5 -5"),
        ("1.2.3 24/12/2017 x²", "1.2.3 24/12/2017 x ²"),
        ("(020) 7946 0958 0207.946.0958", "-lrb-020-rrb-\xa07946\xa00958 0207.946.0958"),
        ("I. The U.S. The U.S. is, e.g. so", "i . the u.s. . the u.s. is , e.g. so"),
        ("No. 5 no. Mr. X etc. Then etc. and etc.", "no. 5 no . mr. x etc. . then etc. and etc. ."),
        ("Del. del. del", "del. del . del"),
        ("low., low.", "low. , low ."),
        ("3,000-seat", "3,000-seat"),
        ("food.It 2.pdf and/or family-friendly 5of5", "food.it 2.pdf and/or family-friendly 5of5"),
        ("\"A\" “b” 'c' ‘x’ ``e''", "`` a '' `` b '' ` c ' ` x ' `` e ''"),
        (":-) (^_^) ;D", ":--rrb- -lrb-^_^-rrb- ; d"),
        ("[a] {b} (c)", "-lsb- a -rsb- -lcb- b -rcb- -lrb- c -rrb-"),
        ("so... so.. so. . . so… s.", "so ... so . . so ... so ... s."),
        ("what?! no!!", "what ?! no !!"),
        ("B&B R&B-x S&P-500", "b&b r&b - x s&p-500"),
        ("so\xadft \xad", "soft -"),
        ("Café ÉTÉ £٣ naïve 東京", "café été # ٣ naïve 東京"),
        ("fig. 5 fig. A cann't ınc. it etc. Éa", "fig. 5 fig . a cann ' t ınc. it etc. . éa"),
        # Odd texts, as the official program has them
        ("of '69 of '69… of '69", "of '69 of ' 69 ... of ' 69"),  # three dots are no white space
        ("Sino-U.S of Sino-U.S… of U.S…", "sino-u.s of sino-u . s ... of u.s ..."),
        ("&QUOT;a&quot; &Quot;", "&quot; a '' &quot;"),  # only entities in lower case are replaced,
        ("it&APOS;s it&apos;s &APOS;", "it &apos;s it 's &apos;"),
        ("R&AMP;B &LT;a&GT; S&Amp;Ls", "r&b < a > s&ls"),  # but for these
        ("&LT;a@x.org&GT; &lt;a@x.org&gt;", "&lt;a@x.org&gt; &lt;a@x.org&gt;"),
        ("<a b='(c)'>", "<a\xa0b='(c)'>"),
        ("ಕಾಫಿ කෝපි ਕੰਮ କଫି தௗ കൊ", "ಕ ಫ ක ප ਕ ਮ କଫ த ക"),  # vowel signs that it does not know
        ("का తా কা", "का తా কা"),  # and those that it does
        ("Ինչո՞ւ այո՜", "ինչո՞ւ այո՜"),
        ("a\u0375b ΄ ۞a ۽ \u070fx", "a\u0375b ΄ ۞a ۽ \u070fx"),
        ("a\u037fb \u0560 \ua7c5 \uab70", "a b"),  # letters newer than the tokenizer
        ("etc.Ⅳ etc. Ⅳ etc. Ⓐ", "etc. etc. . etc. . ⓐ"),
        ("http://😀 etc.😀", "http://😀 etc."),
        ("a  \u2003x.com", "a x.com"),
    ],
)
def test_rules(text, tokens):
    assert lexed(text) == tokens


def test_what_only_looks_like_a_tag_hides_none_that_is_one():
    captions = ['<<a b="c', "<a b='e, f", '">', "g, h'> i"]
    assert ptb.tokenize(captions) == ["<< a b = c", "<a\xa0b='e,\xa0f", '">', "g,\xa0h'> i"]


def test_a_tag_over_two_lines_shifts_no_others():
    captions = ["so <a b='x y", "z'> it", "", "<!-- a", "good"]
    tokens = ["so <a\xa0b='x\xa0y", "z'> it", "", "<", "good"]
    assert ptb.tokenize(captions)[:3] == tokens[:3] and ptb.tokenize(captions)[-1] == tokens[-1]


def test_punctuation_is_dropped_but_not_brackets_nor_what_is_not_on_the_list():
    kept = "a -lrb- b -rrb- c d e !? f -lsb- # -rsb- !! &"
    assert ptb.tokenize(["A (b) – 'c', \"d\" . . . e!? f! [#] !! &"]) == [kept]


def test_a_caption_is_read_together_with_the_beginning_of_the_next():
    assert ptb.tokenize(["size L.", "The pub"]) == ["size l", "the pub"]
    assert ptb.tokenize(["size L.", "A pub.", "the pub"]) == ["size l", "a pub", "the pub"]
    assert ptb.tokenize(["size L.", "Pubs"]) == ["size l.", "pubs"]


def test_a_line_end_within_a_caption_does_not_count():
    assert ptb.tokenize(["a\nb", "\n", "c\r\u2028"]) == ["a b", "", "c"]


hard = st.lists(
    st.sampled_from(
        ["a", "The", "can", "not", "U.S", "inc", "5", "20", "'s", "n't", ".", ",", " ", " ", "\n",
         "\xa0", "-", "<", ">", "<a b='", "'", '"', "&amp;", "/", "(", ")", "@", "x.com", "www.",
         "http://", "£", "é", "\xad", "😀", "_", ":"]
    ),
    max_size=30,
).map("".join)


@patient
@given(st.text() | hard)
def test_any_text_has_tokens_also_where_it_is_cut_into_pieces(text):
    assert lexed(text) == " ".join(ptb.lex(text))


@pytest.mark.parametrize(
    "part", ["word ", "word", " ", "🍕", "(", "a,", "<a b='", "<!--", "\"", "1.", "a@", "a'", "£"]
)
def test_long_texts_have_tokens(part):
    """In a time that grows with their length: with its square, each would take minutes."""
    assert len(ptb.tokenize([part * 10_000, part * 10_000])) == 2
