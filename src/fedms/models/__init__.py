"""Foundation models, experts, gate and mixture: everything that knows torch modules."""

from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone, load_backbone, look_up
from fedms.models.export import (
    save_expert,
    save_gate,
    save_means,
    save_merged,
    save_prior,
    save_statistics,
)
from fedms.models.heads import AttentionHead, ContextHead, Head, LinearHead, PromptHead
from fedms.models.learner import ModelLearner, Prediction
from fedms.models.prefix import Room
from fedms.models.prompts import class_prompts
from fedms.models.rehearsal import Rehearsal
from fedms.models.saved import Opinions, SavedModel
from fedms.models.settings import Mixing, Training
from fedms.models.stack import Trainee
from fedms.models.tariff import Tariff

__all__ = [
    "AdapterSlots",
    "AttentionHead",
    "Backbone",
    "ContextHead",
    "Head",
    "LinearHead",
    "Mixing",
    "ModelLearner",
    "Opinions",
    "Prediction",
    "PromptHead",
    "Rehearsal",
    "Room",
    "SavedModel",
    "Tariff",
    "Trainee",
    "Training",
    "class_prompts",
    "load_backbone",
    "look_up",
    "save_expert",
    "save_gate",
    "save_means",
    "save_merged",
    "save_prior",
    "save_statistics",
]
