from lawm.planning.cem import cumulative_error as cumulative_error
from lawm.planning.cem import plan as plan
from lawm.planning.cem import preset as preset
from lawm.planning.cem import rollout_cost as rollout_cost
