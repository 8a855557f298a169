"""The tokenizer of METEOR, ROUGE-L and CIDEr: Stanford's PTBTokenizer 3.4.1.

PTB is the Penn Treebank, whose conventions it follows: "isn't" becomes "is n't", "(" becomes
"-lrb-", "£" becomes "#". It is a lexer. At each place in the text that rule of RULES wins which
matches most characters, counting those that it only wants to see after its token (the context); of
equals, the first. Then the context is given back, and the next token is looked for right after
this one. What no rule knows is dropped and separates tokens: blanks, emoji, controls.
"""

import re
import unicodedata
from functools import lru_cache

# --- Kinds of characters: the rules see ASCII as it is, beyond it one character for all of a kind

UPPER, LOWER, DIGIT, MARK, SYMBOL, UNKNOWN = "Éé٠\u0301©\0"
CASES_OF_ASCII = "İıſ\u212a"  # they count as i, i, s and k where case does not matter
OTHER_KINDS = {
    SYMBOL: "A6-A9 AC AE-B9 D7 F7 387 5BE 5C0 5C3 5C6 5F3 5F4 600-603 606-60C 614 61B 61E 66A 66D "
            "703-70D 7F6-7F8 964 965 E4F 1FBD 2016 2017 2020-2023 2030-2038 203B 203E-2042 "
            "207C-207F 208C-208E 2100-214F 2190-2BFF 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 "
            "FF5B-FF65",
    "\xad": "AD", "\xa0": "A0", "\u2003": "2000-200A 3000",  # soft hyphen, hard blank, other blanks
    "\r": "B-D 85 2028 2029",  # line ends but "\n"
    "’": "92 2019", "‘": "91 2018 201B", "“": "93 94 AB BB 201A 201C-201F 2039 203A",
    "–": "96 97 2013-2015", "‐": "58A 2010 2011", "…": "2026", "、": "3001",
    "£": "80 A2-A5 60B E3F 20A0 20A4 20AC FFE0 FFE1 FFE5 FFE6",  # currencies
    "²": "B2 B3 B9 2070 2074-2079", "₂": "2080-2089", "⁺": "207A 207B 208A 208B",
    "½": "BC-BE 2153-215E", "⁄": "2044", "٫": "66B 66C",  # the last is Arabic, within a number
    "¿": "A1 BF 37E 589 61F 6D4 700-702 7FA 3002",  # they stand where a sentence begins or ends
    "Ⅳ": "2160-216F", "Ⓐ": "24B6-24CF",  # capitals after an abbreviation; elsewhere none, symbols
    # Letters and digits are known by their Unicode category. Against it, these count as parts of
    # words, these are letters without case, and these are letters that Unicode 6.2 did not have.
    MARK: "2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F 591-5BD 5BF "
          "5C1-5C2 5C4-5C5 5C7 615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C 7A6-7B0 "
          "7EB-7F3 900-903 93C 93E-94E 951-955 962-963 981-983 9BC 9BE-9C4 9C7-9C8 9CB-9CD 9D7 "
          "9E2-9E3 A01-A03 A3C A3E-A4F A81-A83 ABC ABE-ACF B82 BBE-BC2 BC6-BC8 BCA-BCD C01-C03 "
          "C3E-C56 D3E-D44 D46-D48 E31 E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD",
    LOWER: "13A0-13F4 1885-1886",
    UNKNOWN: "37F 528-52F 560 588 5EF 860-88F 8A1 8AD-8C9 978 980 9FC AF9 C34 C5A-C5D C80 CDC-CDD "
             "D04 D54-D5F DE6-DEF E86 E89 E8C E8E-E93 E98 EA0 EA8-EA9 EAC 13F5-13FD 16F1-16F8 170D "
             "171F 1878 191D-191E 19B0-19C0 19C8-19C9 1B4C 1C80-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F "
             "312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF A698-A69D A78F A794-A79F A7AB-A7F7 "
             "A8FD-A8FE A9E0-A9FE AA7E-AA7F AB30-ABBF",
}
KIND_OF_CODE = {  # what stands in two kinds is of the later one
    code: kind
    for kind, ranges in OTHER_KINDS.items()
    for first, _, last in (codes.partition("-") for codes in ranges.split())
    for code in range(int(first, 16), int(last or first, 16) + 1)
}


@lru_cache(None)
def _kind(character):
    if character in "\t\n" or " " <= character <= "~" or character in CASES_OF_ASCII:
        return character
    kind, category = KIND_OF_CODE.get(ord(character), ""), unicodedata.category(character)
    if kind not in (MARK, LOWER, UNKNOWN):
        if category.startswith("L"):
            return UPPER if category == "Lu" else LOWER
        if category == "Nd":
            return DIGIT
    return kind or UNKNOWN


# --- Parts of rules


def _words(words):
    """A pattern for any of these words in any case; a ^Word has its capital, [ab] is literal."""
    words = words.replace(".", r"\.").replace("[", "(?-i:[").replace("]", "])").split()
    words = [f"{w[1]}(?i:{w[2:]})" if w[0] == "^" else f"(?i:{w})" for w in words]
    return "(?:" + "|".join(words) + ")"


ANY, SP, WS, IP = r"[\s\S]", "[ \t\xa0\u2003]", "[ \t\xa0\u2003\n\r]", "[,;:、]"
CAPITAL = f"[A-Z{UPPER}İ\u212aⅣⒶ]"
LETTERS, DIGITS = f"A-Za-z{UPPER}{LOWER}{CASES_OF_ASCII}", f"0-9{DIGIT}"
L, D, LD = f"[{LETTERS}]", f"[{DIGITS}]", f"[{LETTERS}{DIGITS}]"
ENTITY = "&[aeiouAEIOU](?i:acute|grave|uml);"
X = rf"(?:[{LETTERS}{MARK}\xad]|{ENTITY})"
XDS = rf"[{LETTERS}{DIGITS}{MARK}\xad]*(?:{ENTITY}[{LETTERS}{DIGITS}{MARK}\xad]*)*"  # any number
XD = f"(?:{X}|{D}){XDS}"
AP = "(?:['’]|(?i:&apos;))"
APX = "(?:['’`‘]|(?i:&apos;))"
AND = "&(?i:amp;)?"
NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
ATTRIBUTE = rf"""{SP}+{NAME}(?:{SP}*={SP}*(?:"[^"]*"|'[^']*'))?"""
TAG = rf"<(?:[!?][A-Za-z-][^>\n\r]*|{NAME}(?:{ATTRIBUTE})*(?:{SP}*/)?{SP}*|/{NAME}{SP}*)>"
WORD = rf"{X}{XDS}(?:[.!?]{X}{XDS})*"  # "food.It" is one word
CLITIC = f"{AP}(?:[msdMSD]|{_words('re ve ll')})"
NOT = f"[nN]{APX}[tT]"
NUMBER = rf"(?:{D}*(?:[.:,\xad٫]{D}+)+|{D}+)"
COUNTRY = _words("Canada-U.S Sino-U.S Korean-U.S EU-U.S Japan-U.S non-U.S U.S.-U.K U.S.-U.S.S.R")
ACRONYM = rf"(?:{COUNTRY}|[A-Za-z](?:\.[A-Za-z])+)"  # in some rules a single letter is one, too
HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{ACRONYM}\.|[A-Za-z0-9\xad]+))+"
INITIALS = rf"[A-Z]+(?:(?:\+|{AND})[A-Z]+)+"
PART = f"(?:[dDoOlL]{APX}{LD})?{LD}+"
THING = f"{PART}(?:[-_‐]{PART})*"
ALNUMS = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
WHITE = "\t\n\r "  # in sites and addresses
PATH = rf'(?:/[^{WHITE}"<>|()]+[^{WHITE}"<>|().!?,{{}}-])?'
WWW = rf'(?i:www)\.(?:[^{WHITE}"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}'
# A slip of the original: ,-_ is a range, so that a site has no digits and no capitals.
SITE = rf"""(?:[^{WHITE}"'<>|!(){{}}$`,-_]+\.)+{_words("com net org edu")}"""
LABEL = rf'[^{WHITE}"<>|(){{}}.\xa0]+'
NAME_AT = rf'[A-Za-z0-9][^{WHITE}"<>|(){{}}\xa0]*@'
EMAIL = rf"(?:<|(?i:&lt;))?{NAME_AT}(?:{LABEL}\.)*{LABEL}(?:>|(?i:&gt;))?"
PHONE = (
    r"(?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
    r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
)
PHONE_WITH_PERIODS = r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
FILE_TYPE = _words("bat bmp c class cgi cpp dll docx? exe gif gz html? h jar java jpe?g mov mp3 "
                   "pdf php pl png pptx? ps py sql tar txt wav x xml zip")
STARTER = _words(
    "^About ^According ^Additionally ^After ^An ^A ^As ^At ^But ^Earlier ^He ^Her ^Here ^However "
    "^If ^In ^It ^Last ^Many ^More ^Mr. ^Ms. ^Now ^Once ^One ^Other ^Our ^She ^Since ^So ^Some "
    "^Such ^That ^The ^Their ^Then ^There ^These ^They ^This ^We ^When ^While ^What ^Yet ^You"
)
NEW_SENTENCE = f"{WS}+(?:{STARTER}|{TAG}){WS}"
MAY_END = _words(  # abbreviations: a sentence may end in one
    "Jan Feb Mar Apr Jun Jul Aug Sept? Oct Nov Dec Mon Tues? Wed Thu Thurs Fri Ala Ariz ^Az ^Ark "
    "Calif Colo Conn Ct Dak ^Del Fla Ga ^Ill Ind Kans? Ky ^La ^Mass Md Mich Minn ^Miss Mo Mont Neb "
    "Nev Okla ^Ore ^Pa Penn Tenn ^Tex Va Vt ^Wash Wisc? Wyo Inc Cos? Corp Pp?t[ye]s? Ltd Plc Rt "
    "Bancorp Bhd Assn Univ Intl Sys tel est ext sq Jr Sr Bros Ed.D Ph.D Blvd Rd Esq etc al seq Bldg"
)
GOES_ON = _words(  # abbreviations: none ends in one of these
    "Mr Mrs Ms ^Miss Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt Cpl "
    "Pvt Capt Ste? Ave Pres Lieut Hon Brig Co?mdr Pfc Spc Supts? Det Mt Ft Adj Adv Asst Assoc Ens "
    "Insp Mlle Mme Msgr Sfc vs Alex Wm Jos Cie a.k.a cf TREAS Ph Invt Elec Natl M[ft]g Dept"
)

# --- The rules: a token's pattern; that of its context, if it has one; and the output, if it is not
# the token itself: a form for it, or replacements in it

SOFT_HYPHENS = {"\xad": ""}
ONE_TOKEN = {" ": "\xa0", "(": "-lrb-", ")": "-rrb-"}
AMPERSANDS = {"&amp;": "&", "&Amp;": "&", "&AMP;": "&"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
OPENING, CLOSING = {'"': "``", "&quot;": "``"}, {'"': "''", "&quot;": "''"}
QUOTES = {"&apos;": "'", "\x91": "`", "‘": "`", "‛": "`", "‹": "`", "\x92": "'", "’": "'", "›": "'",
          "\x93": "``", "“": "``", "«": "``", "\x94": "''", "”": "''", "»": "''"}
CURRENCIES = {"¢": "cents", "£": "#", "€": "$", "\x80": "$", "¤": "$", "₠": "$"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}

RULES = [
    _words("c[+][+] c# f#"),
    ("(?i:can(?=not)|(?:gon|wan)(?=na)|got(?=ta)|(?:lem|gim)(?=me)|'t(?=was|is))",
     "(?i:not|na|ta|me|was|is)"),
    (TAG, "", {" ": "\xa0"}),
    ("–|(?i:&(?:md|[mn]dash);)", "", "--"),
    ("(?i:&amp;)", "", "&"),
    ("(?i:&lt;)", "", "<"),
    ("(?i:&gt;)", "", ">"),
    f"&(?:{_words('HT TL UR LR QC QL QR odq cdq')}|#{D}+);",
    (WORD, CLITIC, SOFT_HYPHENS),  # it|'s
    (r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", NOT, SOFT_HYPHENS),  # is|n't
    (WORD, "", SOFT_HYPHENS),
    f"[A-HJ-XZn]{APX}{L}{{2,}}",  # O'Brien
    f"{L}+[aeiouyAEIOUY]{APX}[aeiouA-Z]{L}*",
    f"{AP}[nN]{AP}?|[lLdDjJ]{AP}|{_words('Dunkin somethin ol')}{AP}",  # rock 'n' roll
    f"{AP}(?:{_words('em till? cause')}|[2-9]0[sS])",  # the '80s
    f"'(?i:twas)|[oO]{APX}[oO]",
    _words("cont'd.? nor'easter c'mon e'er s'mores ev'ry li'l nat'l").replace("'", AP),
    (f"[yY]{AP}", L),  # y'|all
    f'(?i:https?)://[^{WHITE}"<>|(){{}}]+[^{WHITE}"<>|(){{}}.!?,-]',
    f"{WWW}{PATH}",
    f"{SITE}{PATH}",
    EMAIL,
    f"@[A-Za-z_][A-Za-z0-9_]*|#{X}+",
    (f"{CLITIC}|{NOT}", "[^A-Za-z]", QUOTES),
    f"{D}{{1,2}}[-/]{D}{{1,2}}[-/]{D}{{2,4}}",  # a date
    (f"[-+]?{NUMBER}", "", SOFT_HYPHENS),
    "⁺?(?:²+|₂+)",
    (rf"(?:{D}{{1,4}}[- \xa0])?{D}{{1,4}}(?:\\?/|⁄){D}{{1,4}}", "", ONE_TOKEN),  # 1 1/2
    ("½", "", FRACTIONS),
    _words("-LRB- -RRB- -LCB- -RCB- -LSB- -RSB- C.D.s pro- anti-"),
    _words("Cap'n c'est").replace("'", AP),
    (f"(?i:S{AND}(?:P-500|Ls))", "", AMPERSANDS),
    rf"{ALNUMS}(?:\\?/{ALNUMS}){{1,2}}",  # and/or
    r"[A-Z]*\$|#",
    ("£", "", CURRENCIES),
    ("[A-Za-z]", rf"\.{NEW_SENTENCE}"),  # the period of "I. The" ends the sentence
    (rf"{ACRONYM}\.", NEW_SENTENCE, "{} ."),  # that of "U.S. The" does that, too
    (rf"{_words('ca figs? prop nos? art bldg pp op')}\.", f"{WS}?{D}"),  # no. 5
    (r"(?:(?i:p)t[eyEY]|(?i:co))\.", f"{SP}(?i:ltd|lim)"),
    (rf"{MAY_END}\.", f"{WS}(?:{WS}|{CAPITAL}|{TAG})", "{} ."),
    (rf"{MAY_END}\.", f"{ANY}{ANY}"),
    (rf"{MAY_END}\.", "", "{} ."),  # so at the very end of the text
    rf"(?:{GOES_ON}|{ACRONYM}|[A-Za-z])\.",
    (ACRONYM, WS),
    (f"{AP}[0-9]{{2}}", WS),  # '90
    (rf"{XD}(?:\.{XD})*\.{FILE_TYPE}", f"(?:{WS}|[.?!,])"),
    (rf"{WORD}\.", IP, SOFT_HYPHENS),  # "low.," keeps its period
    (PHONE, "", ONE_TOKEN),
    PHONE_WITH_PERIODS,
    ('"|(?i:&quot;)', "[A-Za-z0-9$]", OPENING),
    ('"|(?i:&quot;)', "", CLOSING),
    "[<>]",
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|[\]]", "[^A-Za-z0-9]", ONE_TOKEN),  # smileys
    (r"[\^x=~<>'-]_[\^x=~<>'-]|\([\^x=~<>'-][_.]?[\^x=~<>'-]\)|\([\^x=~<>']-[\^x=~<>'`]\)",
     "", ONE_TOKEN),  # (^_^)
    (r"[][(){}]", "", BRACKETS),
    ("-{3,4}", "", "--"),
    "-+",
    (r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|…", "", "..."),
    rf"@+|#+|_+|\*+|(?:\\\*){{1,3}}|[?!]+|{IP}|[.¿=/]",
    (rf"{HYPHENATED}\.", IP, SOFT_HYPHENS),
    (HYPHENATED, "", SOFT_HYPHENS),  # family-friendly
    (rf"{THING}\.", IP),
    THING,
    (rf"{INITIALS}\.", IP, AMPERSANDS),
    (INITIALS, "", AMPERSANDS),  # B&B
    ("'", r"[A-Za-z][^ \t\r\n\xa0]", "`"),
    (f"{CLITIC}|{NOT}", "", QUOTES),
    (f"''|[`‘’“]{{1,2}}|{AP}", "", QUOTES),
    r"<<|>>|[%&+\\^|~©Ⓐ⁄⁺]",
    (f"(?i:&nbsp;)|{SP}+|{UNKNOWN}+", "", ""),
    r"\n",
]


# What the rules that look far ahead must find there: without it they are not tried.
NEEDED = {TAG: ">", EMAIL: "@", SITE: ".", HYPHENATED: "-"}


def _compiled(rule):
    token, context, output = (rule, "", "{}") if isinstance(rule, str) else (*rule, "{}")[:3]
    needed = "".join(NEEDED[part] for part in NEEDED if token.startswith(part))
    return needed, re.compile(f"({token}){context}"), output


RULES = [_compiled(rule) for rule in RULES]

# --- The lexer

# Nothing but a tag goes on after a blank that follows a letter or a comma. So the text is cut
# there, and every piece is lexed once: the 114,144 pieces of E2E's references are 1,643 different.
CUT = re.compile(r"(?<=[A-Za-z,][ \n])")
CUT_OR_TAG = re.compile(rf"[A-Za-z,][ \n]|<<|{TAG}")

# What the challenge drops. All is in lower case by then, so "-LRB-" never is.
PUNCTUATION = set("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())


@lru_cache(1 << 16)
def lex(text):
    """The tokens of a text, in lower case; the end of a line is a token, even inside a tag.

    >>> lex("It isn't cheap (£20-25).")
    ('it', 'is', "n't", 'cheap', '-lrb-', '#', '20-25', '-rrb-', '.')
    """
    text = re.sub("[^\0-\uffff]", r"\g<0>\0", text)  # to Java, an emoji is two characters
    kinds, tokens, start = "".join(map(_kind, text)), [], 0
    rules = [(pattern, form) for needed, pattern, form in RULES if needed in kinds]
    while start < len(text):
        reach = end = start
        for pattern, form in rules:
            match = pattern.match(kinds, start)
            if match and match.end() > reach:
                reach, end, output = match.end(), match.end(1), form
        if end > start:
            token = text[start:end]
            if isinstance(output, str):
                token = output.format(token)
            else:
                for old, new in output.items():
                    token = token.replace(old, new)
                token = token or "-"  # a word of soft hyphens
            token = token.lower().replace("\0", "").replace("\n", " \n ")
            tokens += filter(None, token.split(" "))
        start = max(end, start + 1)
    return tuple(tokens)


def _pieces(text):
    if ">" not in text:  # so no tag is looked for
        return CUT.split(text)
    ends = [match.end() for match in CUT_OR_TAG.finditer(text) if not match[0].startswith("<")]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)])]


def tokenize(captions):
    """The tokens that METEOR, ROUGE-L and CIDEr compare: for each caption, a str with blanks.

    The captions are lexed as the lines of one text: how a line begins may decide whether the
    abbreviation at the end of the line before keeps its period. Punctuation is dropped.

    >>> tokenize(["It isn't cheap (£20-25).", "A pub, near St. Ives."])
    ["it is n't cheap -lrb- # 20-25 -rrb-", 'a pub near st. ives']
    """
    lines = [[]]
    for piece in _pieces("\n".join(caption.replace("\n", " ") for caption in captions)):
        for token in lex(piece):
            if token == "\n":
                lines.append([])
            elif token not in PUNCTUATION:
                lines[-1].append(token)
    return [" ".join(line) for line in lines]
