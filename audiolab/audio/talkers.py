"""Synthetic talkers of the built-in corpora: sentences of their own making, spoken by espeak-ng."""

from __future__ import annotations

import numpy as np

from audiolab.audio.espeak import EspeakVoice, synthesize
from audiolab.audio.level import normalize_rms
from audiolab.audio.resample import resample

# A sentence is one of each.
_ENGLISH = (
    ("the old captain", "my younger sister", "a tall stranger", "our new teacher", "the quiet farmer", "her neighbour",
     "that young doctor", "the tired driver", "his best friend", "a clever painter", "the baker", "the night nurse"),
    ("found", "carried", "painted", "forgot", "opened", "bought", "repaired", "noticed", "washed", "borrowed",
     "showed us", "remembered"),
    ("the green bottle", "a heavy basket", "seven letters", "the broken window", "an empty box", "two silver coins",
     "the narrow bridge", "a good story", "the yellow jacket", "some fresh bread", "the garden gate", "a paper boat"),
)  # fmt: skip
_MANDARIN = (
    ("我的老师", "那位医生", "他的朋友", "年轻的画家", "隔壁的老人", "我们的司机", "一个学生", "她的妹妹"),
    ("昨天买了", "刚才找到", "终于打开了", "已经忘记了", "今天早上看见", "小心地拿着", "常常说起", "借走了"),
    ("一本好书", "三把雨伞", "新的自行车", "那座小桥", "桌上的杯子", "两封旧信", "窗边的花", "黄色的外套"),
)
LANGUAGES = {"en-us": (_ENGLISH, " "), "cmn": (_MANDARIN, "")}


def speak_sentence(
    variant: str,
    generator: np.random.Generator,
    sample_rate: int,
    language: str = "en-us",
    pitch: tuple[int, int] = (40, 60),
) -> np.ndarray:
    """Speak a sentence of about two seconds, drawn with its tempo and pitch, without its silent ends, at -26 dBFS.

    `variant` is the talker (`audiolab.audio.espeak.voice_variants`), `language` en-us or cmn; `pitch` are the bounds of
    espeak's pitch, 50 being the variant's own. Returns float32 (time,).

    >>> speech = speak_sentence("f1", np.random.default_rng(0), 8000)
    >>> 1.0 < len(speech) / 8000 < 4.0
    True
    """
    parts, between = LANGUAGES[language]
    text = between.join(str(generator.choice(words)) for words in parts)
    voice = EspeakVoice(
        language=language,
        variant=variant,
        rate_wpm=int(generator.integers(150, 200)),
        pitch=int(generator.integers(pitch[0], pitch[1] + 1)),
        range=int(generator.integers(35, 66)),
    )
    speech = resample(*synthesize(text, voice, seed=int(generator.integers(2**31))), sample_rate)
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    return normalize_rms(speech[loud[0] : loud[-1] + 1], -26.0)
