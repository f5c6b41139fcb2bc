"""Rules and word lists of the quality pass. They sort rows for a person to look at and never refuse any.

A phrase matches whole words in any case and typography (see `phrases`); `*` leaves the word's end open,
`^` ties the phrase to the beginning of the text.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Severity = Literal["info", "warn", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warn", "critical")


class Keyword(BaseModel):
    """A phrase that often comes with harmful content."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    phrase: str = Field(pattern=r"\w", max_length=1000, description="whole words; a final * leaves the end open")
    severity: Severity = Field(default="warn", description="info: counts only beside another keyword")


class StockPhrase(BaseModel):
    """A phrase by which chat assistants are known."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    phrase: str = Field(
        pattern=r"\w", max_length=1000, description="whole words; ^ ties it to the completion's beginning"
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="a completion is flagged when its weights reach the threshold"
    )


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in " ".join(text.split()).split(" | "))


def _keywords(severity: Severity, text: str) -> tuple[Keyword, ...]:
    return tuple(Keyword(phrase=phrase, severity=severity) for phrase in _phrases(text))


def _stock(weight: float, text: str) -> tuple[StockPhrase, ...]:
    return tuple(StockPhrase(phrase=phrase, weight=weight) for phrase in _phrases(text))


HARMFUL = (
    *_keywords(
        "critical",
        """
        pipe bomb* | nail bomb* | car bomb* | dirty bomb* | bomb threat* | build a bomb | make a bomb |
        bomb-making | homemade bomb* | nerve agent* | nerve gas | sarin | ricin | chemical weapon* |
        biological weapon* | school shooting* | mass shooting* | child porn* | child abuse material | csam
        | sex trafficking | human trafficking | ethnic cleansing | kill myself | kill yourself |
        kill himself | kill herself | commit suicide | end my life | encourage suicide | date rape drug* |
        terrorist attack*
        """,
    ),
    *_keywords(
        "warn",
        """
        ransomware | malware | spyware | keylogger* | trojan horse | computer virus | botnet* | ddos |
        phishing | hack into | hacking into | hack my neighbour* | hack my neighbor* | hack someone* |
        steal password* | steal personal | steal confidential | steal credit card* | steal money |
        stolen credit card* | sql injection | credit card fraud | identity theft | stolen identity |
        steal someone* | counterfeit* | fake id | fake ids | fake passport* | forged document* |
        money laundering | launder money | insider trading | tax evasion | evade tax* | embezzle* |
        ponzi scheme* | pyramid scheme* | blackmail* | extort* | bribe* | doxx* | swatting | cyberbully* |
        stalk | stalking | revenge porn | without her consent | without his consent |
        without their consent | meth | methamphetamine* | crystal meth | crack cocaine | cocaine | heroin
        | fentanyl | illegal drug* | drug dealer* | kill someone | kill somebody | kill a person |
        kill people | killing people | kill a human | kill my wife | kill my husband | kill them all |
        hang myself | drown myself | armed robbery | rob a bank | commit fraud | build a weapon |
        make a weapon | blow up a building | explosive* | molotov* | detonat* | silencer | untraceable |
        assassinat* | murder* | hitman | poison someone | poison my | poison a person | strangle* |
        stab someone | shoot someone | torture* | rape | rapist* | molest* | groom a child | underage |
        white supremac* | racially motivated | hate speech | racist joke* | racial slur* |
        holocaust denial | nazi propaganda | inferior race | extremist* | terroris* | self-harm* |
        cut myself | suicide | suicidal | anorexi* | shoplift* | burglar* | carjack* | arson | set fire to
        | vandali* | disinformation | fake news | election fraud | rig an election | rigging an election |
        get away with | avoid detection | evade detection | avoid getting caught
        """,
    ),
    *_keywords(
        "info",
        """
        kill* | bomb* | weapon* | gun | guns | firearm* | ammunition | steal* | hack* | poison* | attack*
        | fraud* | scam* | drug* | shoot* | stab* | threat* | harass* | bully* | abus* | violen* |
        illegal* | illicit | criminal* | crime* | exploit* | victim* | kidnap* | hostage* | smuggl* |
        forge* | cheat* | sabotage* | destroy* | hate* | racis* | sexist* | riot* | blow up | break into |
        breaking into | tamper* | bypass* | unauthorized | unauthorised | secretly | manipulat* | deceiv*
        | discriminat* | propaganda | dangerous* | lethal* | deadly
        """,
    ),
)
"""Keywords of harmful content; a part is flagged for a warn or critical one, or for two different info ones.

Measured once on prompts: XSTest (250 safe prompts worded to alarm, 200 unsafe ones) precision 0.62
(23 false), recall 0.19 (37 found); AdvBench (520 harmful goals) recall 0.60; GSM8K (1,319 harmless
questions) 2 flagged. A keyword finds what is said plainly: the rule points at rows to look at. Which rows ask for
harm and answer willingly is told by `harm.py`.
"""

REFUSALS = _phrases(
    """
    ^i'm sorry, but | ^i'm sorry, i | ^i am sorry, but | ^i am sorry, i | ^sorry, but | ^sorry, i |
    ^i can't | ^i cannot | ^i can not | ^i won't | ^i will not | ^i'm not able | ^i am not able |
    ^i'm unable | ^i am unable | ^no, i | i can't help with | i cannot help with | i can't assist |
    i cannot assist | i won't help | i can't provide | i cannot provide | i'm not going to help |
    i am not going to help
    """
)
"""A completion with one of these answers a harmful prompt by declining; such rows are counted apart."""

ASSISTANT_SPEAK = (
    *_stock(
        1.0,
        """
        as an ai | as a language model | as a large language model | as an artificial intelligence |
        i'm just an ai | i am just an ai | i'm an ai | i am an ai | my training data | my knowledge cutoff
        | my last knowledge update | i don't have personal experience* |
        i do not have personal experience* | i don't have personal opinion* |
        i do not have personal opinion* | i do not have access to real-time |
        i don't have access to real-time | i hope this helps | i hope this information helps |
        is there anything else i can | let me know if you have any other questions |
        let me know if you have any questions | i'd be happy to help | i would be happy to help |
        i'd be glad to help | trained by openai | regenerate response | what a great question |
        that's a great question
        """,
    ),
    *_stock(
        0.5,
        """
        great question! | do not hesitate to | don't hesitate to | let me know if you need |
        feel free to ask | feel free to reach out | hope this helps | happy to assist | ^certainly! |
        ^absolutely! | ^of course! | ^sure! | ^sure thing! | ^sure, here | ^certainly, here | ^here's a |
        ^here is a | ^here are some | it is important to note | it's important to note | it's worth noting
        | it is worth noting | important to remember that | please consult a | please consult the |
        consult a qualified | consult with a professional | please note that | as of my last |
        i understand that you | thank you for reaching out | i apologize for the confusion |
        i apologize for any | delve into | in the realm of | rich tapestry | navigating the complexities |
        in conclusion, | in summary, | ultimately, the
        """,
    ),
)
"""Stock phrases of chat assistants; weights of different phrases add up.

Measured once at the threshold 1.0, flagged: human answers of GSM8K 0 of 1,319 and of the self-instruct seed
tasks 0 of 175; human turns of hh-rlhf 3 of 5,764; assistant turns of a Vicuna identity set 24 of 1,000.
Openings such as "Sure, here is" (all 520 AdvBench targets) weigh 0.5: alone they are no fault.
"""

RULES = {
    "harmful_content": "prompt or completion holds keywords of harmful content; the answer does not decline",
    "harmful_refused": "the prompt holds keywords of harmful content and the answer declines",
    "assistant_speak": "the completion sounds like a chat assistant, not like your data",
    "too_long": "longer than max_length: the end is cut off",
    "completion_cut": "the cut falls into the completion, so the model learns to stop too early",
    "no_trained_tokens": "no token carries loss: the row teaches nothing",
    "empty_completion": "the completion has no words",
    "short_completion": "the completion has fewer words than min_completion_words",
    "exact_duplicate": "the row is there more than once",
    "near_duplicate": "nearly the same words as another row",
    "contradictory": "another row has the same prompt and another completion",
    "identical_pair": "chosen and rejected are the same text",
}
"""Every flag and what it says about a row."""

NOTES = frozenset({"harmful_refused", "short_completion", "contradictory"})
"""Flags that describe a row without calling it faulty."""
