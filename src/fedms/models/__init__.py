"""Foundation models, experts, gate and mixture: everything that knows torch modules."""

from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone, load_backbone
from fedms.models.export import (
    FILES,
    list_of,
    means_file,
    needs_fedms,
    peft_model,
    prior_file,
    save_beside,
    save_expert,
    save_gate,
    save_merged,
    statistics_file,
)
from fedms.models.foundation import keep
from fedms.models.heads import AttentionHead, ContextHead, Head, LinearHead, PromptHead
from fedms.models.learner import ModelLearner, Prediction
from fedms.models.names import hub_id, spoken
from fedms.models.prefix import Room
from fedms.models.pretrained import look_up
from fedms.models.products import cpu_has_products
from fedms.models.prompts import class_prompts
from fedms.models.rehearsal import Rehearsal
from fedms.models.saved import Common, Opinions, SavedModel
from fedms.models.settings import Mixing, Training
from fedms.models.stack import Trainee
from fedms.models.tariff import Tariff
from fedms.models.together import predict_together

__all__ = [
    "FILES",
    "AdapterSlots",
    "AttentionHead",
    "Backbone",
    "Common",
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
    "cpu_has_products",
    "hub_id",
    "keep",
    "list_of",
    "load_backbone",
    "look_up",
    "means_file",
    "needs_fedms",
    "peft_model",
    "predict_together",
    "prior_file",
    "save_beside",
    "save_expert",
    "save_gate",
    "save_merged",
    "spoken",
    "statistics_file",
]
